"""Real networks without a fifth of their channels: valid, as their interface was, and exact where what goes is zero."""

from pathlib import Path

import numpy as np
import pytest

import onnxdfq
from passes.graph.editing import constant_value
from passes.prune.channels import choose_channels
from passes.prune.remove_channels import RemoveChannels

from .conftest import outputs, zero_what_goes

# share of the layers' output channels that go at ratio 0.2
QUICK = {"mobilenetv1_vww": (0.1, 0.25)}
SLOW = {
    "fastestdet_coco": (0.1, 0.2),
    "mtcnn_onet": (0.15, 0.25),
    "pplcnet_orientation": (0.15, 0.25),
    "resnet20_cifar10jpeg": (0.15, 0.25),
    "ulface_slim320": (0.15, 0.25),
    "vit_cifar10": (0.03, 0.1),
}


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_narrower_and_exact(name: str, shared_data: Path) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the real models here")
    model = onnxdfq.load(path)
    plan = choose_channels(model, ratio=0.2)
    least, most = (QUICK | SLOW)[name]
    assert least < plan.removed / sum(group.channels for group in plan.groups) < most
    zero_what_goes(model, plan)
    wanted = outputs(model, batch=1)
    RemoveChannels(plan)(model)
    found = outputs(model, batch=1)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


def test_what_remains_is_a_multiple(shared_data: Path) -> None:
    model = onnxdfq.load(shared_data / "models" / "resnet20_cifar10jpeg.onnx")
    plan = choose_channels(model, ratio=0.2)
    RemoveChannels(plan)(model)
    weights = [constant_value(node.inputs[1]) for node in model.graph if node.op_type == "Conv"]
    assert {len(weight) for weight in weights if weight is not None} == {16, 24, 48}
    assert plan.groups[-1].why == "its channels are those of the output 'logits'"
