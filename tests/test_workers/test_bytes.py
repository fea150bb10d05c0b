"""How much workers tell one another: the basis of docs/expect/many-gpus.md."""

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
from torch import Tensor

import onnxdfq
from onnxdfq.methods import Dgh
from onnxdfq.workers import Workers
from passes.graph.batch_norm import read_batch_norms

from ..graphs import plain_network

STEPS, IMAGES, BATCH = 3, 16, 8


class Counting(Workers):
    """Alone; counts what it would tell others."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def gather(self, tensor: Tensor | None) -> Sequence[Tensor | None]:
        self.told.append(0 if tensor is None else tensor.numel() * tensor.element_size())
        return [tensor]


@pytest.mark.parametrize("slices", [1, 2])
def test_a_step_of_dgh_tells_the_statistics_of_each_slice(slices: int, tmp_path: Path) -> None:
    model, workers = plain_network(channels=3), Counting()
    ir.save(model, tmp_path / "model.onnx")
    method = Dgh(steps=STEPS, batch_size=BATCH, slices=slices)
    onnxdfq.synthesize(tmp_path / "model.onnx", method=method, images=IMAGES, normalize="none", workers=workers)
    channels = sum(len(norm.mean) for norm in read_batch_norms(model))
    each = 4 * (2 * (channels + 3) + 3)  # float32: means and variances of channels and colours, and three sums
    batches = IMAGES // BATCH
    assert workers.told == [slices * each] * (STEPS + 1) * batches
