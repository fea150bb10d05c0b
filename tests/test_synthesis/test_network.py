"""The network as a synthesis method sees it: moments of folded BatchNormalizations are those of intact ones."""

import onnx_ir as ir
import pytest
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.synthesis import network
from onnxdfq.synthesis.network import TappedNetwork
from passes.graph.batch_norm import read_batch_norms


def with_scale(model: ir.Model, scale: float, channel: int) -> ir.Model:
    """A copy of which the first BatchNormalization has another scale in one channel."""
    model = model.clone()
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    value = norm.inputs[1]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[channel] = scale
    value.const_value = ir.tensor(array, name=value.name)
    return model


@pytest.mark.parametrize("scale", [0.5, -2.0, 0.0])  # 0: nothing of the input is left in the output
def test_moments_are_those_of_the_inputs(small_model: ir.Model, scale: float) -> None:
    small_model = with_scale(small_model, scale, 1)
    norms = read_batch_norms(small_model)
    tapped = TappedNetwork(small_model, method="test", device="cpu", precision="float32")
    images = torch.randn(5, *tapped.planes, generator=torch.Generator().manual_seed(0))
    taps, outputs = tapped.forward(tapped.given(images))
    inputs = TorchGraph(small_model, outputs=[norm.value for norm in norms])(images)
    centred = [
        value.movedim(1, -1).flatten(0, -2) - torch.tensor(norm.mean) for norm, value in zip(norms, inputs, strict=True)
    ]
    first, second = (torch.cat([rows.pow(power).mean(0) for rows in centred]) for power in (1, 2))
    torch.testing.assert_close(tapped.moments(taps), torch.stack([first, second]), rtol=1e-3, atol=1e-4)
    own = (inputs[-1].flatten(2) - torch.tensor(norms[-1].mean)[:, None]).mean(2)
    torch.testing.assert_close(tapped.image_moments(taps, -1)[0], own, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs[0], TorchGraph(small_model)(images)[0], rtol=1e-3, atol=1e-4)


def test_what_bfloat16_would_blur_stays_intact(small_model: ir.Model) -> None:
    names = {norm.value for norm in read_batch_norms(small_model)}
    _, taps = network._folded(small_model, read_batch_norms(small_model))
    assert not names & {tap.value for tap in taps}
    blurred = with_scale(small_model, 1e-6, 0)
    _, taps = network._folded(blurred, read_batch_norms(blurred))
    assert [tap.value in names for tap in taps] == [True, *[False] * (len(taps) - 1)]
