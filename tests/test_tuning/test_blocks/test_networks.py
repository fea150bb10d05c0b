"""Blocks of real networks."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxdfq.model_file import load_model
from onnxdfq.tuning.blocks import find_blocks, find_layers
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

from ...slow import all_but

RESNET20 = {"plain": 2, "residual": 9}
RESNET56 = {"plain": 2, "residual": 27}
WANTED = {
    "resnet20_cifar10": RESNET20,
    "resnet20_cifar10jpeg": RESNET20,
    "resnet56_cifar10": RESNET56,
    "resnet56_cifar10jpeg": RESNET56,
    "resnet8_cifar10": {"plain": 2, "residual": 3},
    "mobilenetv1_vww": {"plain": 15},  # stem, 13 pairs of depthwise and pointwise, head
    "convmixer_cifar10": {"plain": 10, "inverted residual": 8},
    "vit_cifar10": {"plain": 2, "transformer": 12},
    # 16 units of a ShuffleNetV2, the three branches of the head; the neck's sum of depthwise branches
    "fastestdet_coco": {"plain": 3, "dense": 17, "inverted residual": 1},
}


@pytest.mark.parametrize("name", all_but(WANTED, ["resnet8_cifar10", "mobilenetv1_vww"]))
def test_every_weight_lies_in_one_block_that_runs_alone(
    shared_data: Path, assert_blocks: Callable[..., None], name: str
) -> None:
    model = load_model(shared_data / "models" / f"{name}.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    before = ir.to_proto(model).SerializeToString()
    blocks = find_blocks(model)
    assert dict(Counter(block.kind for block in blocks)) == WANTED[name]
    assert not any(block.fallback for block in blocks)
    assert blocks[0].entry == model.graph.inputs[0].name
    assert_blocks(model, blocks)
    layers = find_layers(model)
    assert all(len(layer.weights) == 1 for layer in layers)
    assert_blocks(model, layers)
    assert ir.to_proto(model).SerializeToString() == before, "finding changes nothing"
