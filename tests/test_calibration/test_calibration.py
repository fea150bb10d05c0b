"""Calibration on small graphs: bias correction against brute force, signs, known ranges, clips, fixed batches."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration.bias_correction import corrected_bias
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import DataError, InputError
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant

from ..graphs import build

ORT = load_target("ort")


def plan(model: ir.Model, pixels: np.ndarray[Any, Any], **settings: Any) -> QuantPlan:
    return Calibration(**settings).plan(model, pixels.astype("f4"), ORT)


@pytest.mark.parametrize(
    ("operator", "shape", "channels"),
    [
        ("Conv <kernel_shape=[1,1], group=1>", (6, 4, 1, 1), 4),
        ("Conv <kernel_shape=[1,1], group=2>", (6, 2, 1, 1), 4),
        ("Conv <kernel_shape=[1,1], group=4>", (4, 1, 1, 1), 4),
        ("ConvTranspose <kernel_shape=[2,2], strides=[2,2], group=2>", (4, 3, 2, 2), 4),
    ],
)
def test_correction_restores_the_mean_exactly(operator: str, shape: tuple[int, ...], channels: int) -> None:
    """No borders here, so the corrected layer's mean output must equal the float layer's on the very same inputs."""
    random = np.random.default_rng(0)
    weight = random.normal(size=shape).astype("f4")
    out = 6 if shape[0] == 6 or "Transpose" in operator else 4
    bias = random.normal(size=out).astype("f4")
    text = f"(float[N,{channels},6,6] x) => (float[N,{out},h,w] y) {{ y = {operator} (x, w, b) }}"
    model = build(text, w=weight, b=bias)
    x = torch.from_numpy(random.normal(1.0, 2.0, size=(16, channels, 6, 6)).astype("f4"))
    quant = TensorQuant(bits=2, signed=True, threshold=np.full(shape[1 if "Transpose" in operator else 0], 2.0),
                        axis=1 if "Transpose" in operator else 0)  # fmt: skip
    corrected = corrected_bias(model.graph[0], quant.round_trip(weight), x.double().mean(dim=(0, 2, 3)).numpy())
    assert corrected is not None
    rounded = build(text, w=quant.round_trip(weight).astype("f4"), b=corrected)
    wanted, found = (TorchGraph(m)(x)[0].mean(dim=(0, 2, 3)) for m in (model, rounded))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_correction_of_a_gemm_with_alpha_and_beta(transposed: int) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(3, 5) if transposed else (5, 3)).astype("f4")
    text = f"(float[N,5] x) => (float[N,3] y) {{ y = Gemm <alpha=0.5, beta=2.0, transB={transposed}> (x, w, b) }}"
    model = build(text, w=weight, b=np.ones(3, "f4"))
    x = torch.from_numpy(random.normal(1.0, 2.0, size=(16, 5)).astype("f4"))
    quant = TensorQuant(bits=2, signed=True, threshold=np.full(3, 2.0), axis=1 - transposed)
    corrected = corrected_bias(model.graph[0], quant.round_trip(weight), x.double().mean(dim=0).numpy())
    assert corrected is not None
    rounded = build(text, w=quant.round_trip(weight).astype("f4"), b=corrected)
    wanted, found = (TorchGraph(m)(x)[0].mean(dim=0) for m in (model, rounded))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_signs_and_known_ranges() -> None:
    model = build(
        "(float[N,3] x) => (float[N,3] y, float[N,3] z) "
        "{ h = Gemm (x, w)  r = Relu (h)  y = Softmax (r)  z = Sigmoid (r) }",
        w=np.eye(3, dtype="f4"),
    )
    found = plan(model, np.random.default_rng(0).normal(size=(64, 3)) * 3).activations
    assert set(found) == {"x", "r", "y", "z"}
    assert found["x"].signed and not found["r"].signed
    for name in ("y", "z"):
        assert (float(found[name].threshold), found[name].signed) == (1.0, False)


def test_what_enters_and_what_leaves_keeps_eight_bits() -> None:
    model = build(
        "(float[N,3] x) => (float[N,3] r, float[3,N] z) "
        "{ h = Gemm (x, w)  r = Relu (h)  k = Gemm (r, w)  s = Relu (k)  y = Gemm (s, w)  z = Transpose (y) }",
        w=np.eye(3, dtype="f4"),
    )
    found = plan(model, np.random.default_rng(0).normal(size=(64, 3)), weight_bits=3, activation_bits=4)
    # a layer reads 'r', though it leaves, too
    assert {name: quant.bits for name, quant in found.activations.items()} == {"x": 8, "r": 4, "s": 4, "y": 8}
    assert found.weights["w"].bits == 3


def test_the_papers_quantize_only_what_a_relu_gives() -> None:
    text = """(float[N,2,6,6] x) => (float[N,2,4,4] y) {
        a = Conv <kernel_shape=[1,1]> (x, w) r = Relu(a) m = MaxPool <kernel_shape=[2,2]> (r)
        s = MaxPool <kernel_shape=[3,3]> (x) t = Conv <kernel_shape=[1,1]> (s, w)
        c = Clip(t, low, high) u = Conv <kernel_shape=[2,2]> (m, v) y = Add(c, u)
    }"""
    numbers = {"low": np.float32(0), "high": np.float32(6), "v": np.ones((2, 2, 2, 2), "f4")}
    model = build(text, w=np.eye(2, dtype="f4").reshape(2, 2, 1, 1), **{k: np.asarray(v) for k, v in numbers.items()})
    images = np.random.default_rng(0).normal(size=(8, 2, 6, 6))
    all_of_them, papers = (plan(model, images, scheme="free", only_activated=flag) for flag in (False, True))
    assert papers.activations.keys() == {"r", "c"} < all_of_them.activations.keys()
    assert papers.same_as == {"m": "r"} and not papers.constants
    assert papers.weights.keys() == all_of_them.weights.keys() == {"w", "v"}


def test_float_activations_leave_weights_only() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Gemm (x, w) }", w=np.eye(3, dtype="f4"))
    found = plan(model, np.ones((4, 3)), activation_bits=32)
    assert not found.activations and not found.same_as and set(found.weights) == {"w"}


@pytest.mark.parametrize(("scheme", "clip"), [("power-of-two", (0, 192)), ("free", None)])
def test_a_relu6_never_keeps_its_producer_float(scheme: str, clip: tuple[int, int] | None) -> None:
    model = build(
        "(float[N,3] x) => (float[N,3] y) { h = Gemm (x, w)  y = Clip (h, low, high) }",
        w=np.eye(3, dtype="f4"),
        low=np.array(0, "f4"),
        high=np.array(6, "f4"),
    )
    quant = plan(model, np.random.default_rng(0).uniform(0, 7, size=(512, 3)), scheme=scheme).activations["y"]
    assert quant.clip == clip
    if scheme == "power-of-two":
        assert float(quant.threshold) == 8.0
    else:
        assert quant.range[1] * float(quant.scale) <= 6.0 < 1.02 * quant.range[1] * float(quant.scale)


def test_images_that_do_not_fit_are_refused() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Gemm (x, w) }", w=np.eye(3, dtype="f4"))
    with pytest.raises(DataError, match=r"samples are \(4, 5\).*\(N, 3\)"):
        plan(model, np.ones((4, 5)))


def test_a_model_without_float32_weights_is_refused() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    with pytest.raises(InputError, match="nothing to quantize"):
        plan(model, np.ones((4, 3)))


def test_a_network_that_overflows_is_named() -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { h = Gemm (x, w)  y = Exp (h) }", w=np.eye(3, dtype="f4"))
    with pytest.raises(DataError, match="'y' became infinite"):
        plan(model, np.full((4, 3), 1000.0))


def test_a_fixed_batch_is_kept_to() -> None:
    model = build("(float[4,3] x) => (float[4,3] y) { y = Gemm (x, w) }", w=np.eye(3, dtype="f4"))
    found = plan(model, np.concatenate([np.full((4, 3), 1.0), np.full((2, 3), 100.0)]))
    assert float(found.activations["x"].threshold) <= 2.0, "the two images left over are not seen"
    with pytest.raises(DataError, match="takes 4 samples at a time and only 2"):
        plan(model, np.ones((2, 3)))


def test_the_largest_numbers_of_float32_are_counted() -> None:
    histogram = Histogram()
    histogram.add(torch.tensor([-3e38, 0.0, 3e38]))
    assert histogram.bound == 2.0**128
    assert histogram.counts.sum() == 3
    assert histogram.points()[0].tolist() == pytest.approx([-3e38, 0.0, 3e38], rel=1e-3)
