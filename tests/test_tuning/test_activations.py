"""Activation quantizers under tuning, against the plan's own arithmetic and the engine's gradients."""

import numpy as np
import pytest
import torch

from onnxdfq.engine.quant import DequantizeLinear, QuantizeLinear
from onnxdfq.tuning.activations import ActivationQuantizer, RandomMasks, with_whole_reciprocal
from passes.quantize.plan import TensorQuant

X = torch.linspace(-3, 3, 61)
QUANTS = {
    "signed": TensorQuant(bits=4, signed=True, threshold=np.asarray(1.7)),
    "unsigned": TensorQuant(bits=4, signed=False, threshold=np.asarray(2.0)),
    "clipped": TensorQuant(bits=4, signed=False, threshold=np.asarray(4.0), clip=(0, 7)),
}


@pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
def test_values_are_those_of_the_plan(quant: TensorQuant) -> None:
    quantizer = ActivationQuantizer(quant, learned=False, searched=False)
    np.testing.assert_allclose(quantizer(X).detach().numpy(), quant.round_trip(X.numpy()), atol=1e-6)
    assert quantizer.scale == pytest.approx(float(quant.scale))


def test_gradients_are_those_of_the_engine() -> None:
    x = X[X.abs() < 2.9].clone().requires_grad_()  # away from the borders, where rounding decides who is inside
    quantizer = ActivationQuantizer(QUANTS["signed"], learned=True, searched=False)
    weight = torch.cos(torch.arange(len(x)).float())
    scale = torch.tensor(quantizer.scale, requires_grad=True)
    y = DequantizeLinear(QuantizeLinear(x, scale, torch.zeros((), dtype=torch.int8)).clamp(-8, 7), scale)
    assert y.dtype == torch.float32
    ours = torch.autograd.grad((quantizer(x) * weight).sum(), [x, quantizer.log2_scale])
    exact = torch.where((x / scale).round().clamp(-8, 7) == (x / scale).round(), weight, 0.0)
    torch.testing.assert_close(ours[0], exact.detach())
    scaled = (x / scale).detach()
    inside = (scaled.round() >= -8) & (scaled.round() <= 7)
    by_scale = torch.where(inside, scaled.round() - scaled, scaled.round().clamp(-8, 7))
    expected = (by_scale * weight).sum() * quantizer.scale * np.log(2)
    torch.testing.assert_close(ours[1], expected.float(), rtol=1e-4, atol=1e-4)


def test_power_of_two_steps_are_exact() -> None:
    for exponent in (-9, 0, 3):
        quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(2.0**exponent))
        assert ActivationQuantizer(quant, learned=False, searched=True).scale == 2.0 ** (exponent - 7)


def test_whole_reciprocals_survive_a_runtime_that_rounds_down() -> None:
    for whole in range(1, 5000):
        scale = np.float32(with_whole_reciprocal(1 / (whole + 0.3)))
        assert np.floor(np.float32(1) / scale) == whole
        assert scale == pytest.approx(1 / whole, rel=1e-6)


def test_a_scale_is_frozen_at_a_whole_reciprocal() -> None:
    quant = TensorQuant(bits=4, signed=False, threshold=np.asarray(16 / 20.7))
    quantizer = ActivationQuantizer(quant, learned=True, searched=False, whole_reciprocal=True)
    quantizer.freeze()
    assert quantizer.scale == pytest.approx(1 / 21, rel=1e-6)
    assert float(quantizer(torch.tensor([0.5])).detach()) == pytest.approx(10 / 21, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_masks_fall_as_often_as_they_should(layout: torch.memory_format) -> None:
    masks = RandomMasks(0.75, 0, torch.device("cpu"), torch.float32)
    values = torch.zeros(8, 6, 20, 10).contiguous(memory_format=layout)
    first, second = masks.like(values), masks.like(values)
    assert first.shape == values.shape
    assert first.stride() == values.stride()
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert float(first.mean()) == pytest.approx(0.75, abs=0.02)
    assert (first != second).any()


def test_mixing_keeps_exact_values_where_the_coin_says_so() -> None:
    quantizer = ActivationQuantizer(QUANTS["signed"], learned=False, searched=False)
    quantizer.masks = RandomMasks(0.5, 1, torch.device("cpu"), torch.float32)
    mixed, grid = quantizer.mixed(X, X + 100), torch.from_numpy(QUANTS["signed"].round_trip(X.numpy())).float()
    kept = mixed > 50
    assert 10 < int(kept.sum()) < 50
    torch.testing.assert_close(mixed[kept].detach(), X[kept] + 100)
    torch.testing.assert_close(mixed[~kept].detach(), grid[~kept])
