"""How much workers tell one another: the basis of docs/expect/many-gpus.md."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from torch import Tensor

import onnxdfq
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.methods import Dgh
from onnxdfq.targets import load_target
from onnxdfq.training.distilling import Distilling
from onnxdfq.training.loop import Loop
from onnxdfq.tuning.reconstruction import Reconstruction
from onnxdfq.tuning.tuning import Tuning
from onnxdfq.workers import Workers
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.batch_norm import read_batch_norms
from passes.quantize.plan import QuantPlan

from ..graphs import natural_images, plain_network

ORT = load_target("ort")
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


class Twins(Counting):
    """The first of two, of which the second says the same."""

    size = 2

    def gather(self, tensor: Tensor | None) -> Sequence[Tensor | None]:
        return [*super().gather(tensor), tensor]


@pytest.fixture
def planned(small_model: ir.Model) -> tuple[ir.Model, QuantPlan]:
    model = small_model.clone()
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model, Calibration(weight_bits=3, activation_bits=32).plan(model, natural_images(40, 1, 8), ORT)


def weight_sizes(model: ir.Model, plan: QuantPlan) -> dict[str, int]:
    values = {name: model.graph.initializers[name].const_value for name in plan.weights}
    return {name: value.size for name, value in values.items() if value is not None}


@pytest.mark.parametrize("slices", [2, 4])
def test_a_step_of_distillation_tells_the_gradients_of_each_slice(
    slices: int, planned: tuple[ir.Model, QuantPlan]
) -> None:
    """Of each weight the positions and a factor for each channel of its grid train, and biases."""
    workers, plan = Twins(), planned[1]
    distilling = Distilling(loop=Loop(steps=STEPS, batch_size=BATCH, looks=1, slices=slices))
    distilling.train(*planned, ORT, natural_images(40, 1, 8), workers=workers)
    factors = [np.size(quant.scale) for quant in plan.weights.values()]
    biases = [len(bias) for bias in plan.biases.values()]
    sizes = [*weight_sizes(*planned).values(), *factors, *biases]
    energies = 1 + 2  # of the output, and of the exits of the first two blocks
    own = slices // 2
    assert workers.told == [4 * own * energies, 4 * own * (1 + len(sizes) + sum(sizes))] * STEPS


@pytest.mark.parametrize("slices", [2, 4])
def test_a_step_of_reconstruction_tells_the_gradients_of_one_block(
    slices: int, planned: tuple[ir.Model, QuantPlan]
) -> None:
    workers, plan = Twins(), planned[1]
    reconstruction = Reconstruction(steps=STEPS, batch_size=BATCH, slices=slices)
    tuning = Tuning(by_block=True, learn_scales=False, reconstruction=reconstruction)
    _, parts = tuning.tune(*planned, ORT, natural_images(40, 1, 8), workers=workers)
    expected = []
    for part in parts:
        biases = [len(bias) for layer, bias in plan.biases.items() if layer in part.block.nodes]
        sizes = [*(weight_sizes(*planned)[name] for name in part.block.weights), *biases]
        expected += [4 * (slices // 2) * (1 + len(sizes) + sum(sizes))] * STEPS
    assert len(parts) == 3 and workers.told == expected
