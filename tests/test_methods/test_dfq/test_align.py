"""Aligned channels: free scales become powers of two, and the function stays."""

from typing import Any

import numpy as np
import pytest
import torch

from onnxdfq.calibration.thresholds import weight_thresholds
from onnxdfq.engine import TorchGraph
from onnxdfq.methods.dfq.align import aligning_scales
from passes.dfq.equalize import EqualizeChannels
from passes.quantize.plan import TensorQuant

from ...graphs import build

RNG = np.random.default_rng(9)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype("f4")


def loss(array: np.ndarray[Any, Any], scheme: Any, axis: int, bits: int) -> float:
    """Squared rounding error, relative to the weights of each output channel."""
    thresholds = weight_thresholds(array, bits, scheme, axis=axis)
    error = TensorQuant(bits=bits, signed=True, axis=axis, threshold=thresholds).round_trip(array) - array
    axes = tuple(d for d in range(array.ndim) if d != axis)
    return float((np.square(error).sum(axis=axes) / np.square(array).sum(axis=axes)).sum())


LAYERS = [
    ("Conv (x, v, b)", (8, 4, 3, 3), 0),
    ("Conv <group = 4> (x, v, b)", (8, 1, 3, 3), 0),
    ("ConvTranspose (x, v, b)", (4, 8, 3, 3), 1),
    ("ConvTranspose <group = 2> (x, v, b)", (4, 4, 3, 3), 1),
]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("layer", "shape", "axis"), LAYERS)
def test_nothing_is_lost_to_powers_of_two(layer: str, shape: tuple[int, ...], axis: int, bits: int) -> None:
    text = f"(float[N,4,8,8] x) => (float[N,3,h,w2] y) {{ a = {layer} r = Relu (a) y = Conv (r, w) }}"
    model = build(text, v=weight(*shape), b=weight(8), w=weight(3, 8, 1, 1))
    before = model.graph.initializers["v"].const_value.numpy()  # type: ignore[union-attr]
    x = torch.from_numpy(weight(2, 4, 8, 8))
    wanted = TorchGraph(model)(x)[0]
    scales = aligning_scales(model, bits)
    assert set(scales) == {"a", "r"}
    assert (np.abs(np.log2(scales["a"])) <= 0.5).all()
    EqualizeChannels(scales)(model)
    torch.testing.assert_close(TorchGraph(model)(x)[0], wanted, rtol=1e-4, atol=1e-4)
    after = model.graph.initializers["v"].const_value.numpy()  # type: ignore[union-attr]
    free = loss(before, "free", axis, bits)
    assert loss(after, "power-of-two", axis, bits) == pytest.approx(free, rel=1e-3)
    assert loss(before, "power-of-two", axis, bits) > 1.03 * free  # there was something to gain


def test_layers_are_aligned_one_after_the_other() -> None:
    """The middle layer takes the inverse of its input's scales before its own threshold is asked for."""
    text = (
        "(float[N,4] x) => (float[N,3] y) "
        "{ a = Gemm (x, u, b) r = Relu (a) m = Gemm <transB = 1> (r, v) s = Relu (m) y = Gemm (s, w) }"
    )
    model = build(text, u=weight(4, 64), b=weight(64), v=weight(64, 64), w=weight(64, 3))
    EqualizeChannels(aligning_scales(model, 4))(model)
    for name, axis in (("u", 1), ("v", 0)):
        array = model.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]
        assert loss(array, "power-of-two", axis, 4) == pytest.approx(loss(array, "free", axis, 4), rel=0.02)


def test_a_dead_channel_keeps_its_scale() -> None:
    dead = weight(8, 4, 1, 1)
    dead[3] = 0
    text = "(float[N,4,8,8] x) => (float[N,3,8,8] y) { a = Conv (x, v) r = Relu (a) y = Conv (r, w) }"
    scale = aligning_scales(build(text, v=dead, w=weight(3, 8, 1, 1)), 4)["a"]
    assert scale[3] == 1
    assert (scale[:3] != 1).all()
