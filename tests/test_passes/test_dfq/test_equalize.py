"""EqualizeChannels: the paper's scales by hand, the function unchanged, and where it must not reach."""

import numpy as np
import pytest

from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.dfq.equalize import EqualizeChannels, equalizing_scales

from ...slow import slow

RNG = np.random.default_rng(5)


def rand(*shape, spread=1.0):
    """Weights whose first axis has scales from 1 / spread to spread."""
    scales = np.geomspace(1 / spread, spread, shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    return (RNG.normal(0, 1, shape) * scales).astype(np.float32)


def equalize(model):
    return EqualizeChannels(equalizing_scales(model))


def greatest(array, axis):
    return np.abs(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)).max(axis=1)


def weights(model):
    return {node.name: node.inputs[1].const_value.numpy() for node in model.graph if len(node.inputs) > 1}


def test_eq_11_by_hand(build):
    # r1 = (8, 1), r2 = (2, 4): s = sqrt(r1 r2) / r1 = (1/2, 2), after which both layers have (4, 2)
    model = build(
        "(float[N,1,2,2] x) => (float[N,1,2,2] y) { a = Conv(x, v, b) r = Relu(a) y = Conv(r, w) }",
        v=np.array([8, -1], np.float32).reshape(2, 1, 1, 1),
        b=np.array([3, 5], np.float32),
        w=np.array([-2, 4], np.float32).reshape(1, 2, 1, 1),
    )
    scales = equalizing_scales(model)
    assert {name: scale.tolist() for name, scale in scales.items()} == {"a": [0.5, 2.0], "r": [0.5, 2.0]}
    assert EqualizeChannels(scales)(model).modified
    first, _, second = model.graph
    assert first.inputs[1].const_value.numpy().ravel().tolist() == [4, -2]
    assert first.inputs[2].const_value.numpy().tolist() == [1.5, 10]
    assert second.inputs[1].const_value.numpy().ravel().tolist() == [-4, 2]
    assert len(second.inputs) == 2  # no bias, and none needed


CHAINS = [
    ("r = Relu(a)", "y = Conv(r, w)"),
    ("r = LeakyRelu <alpha = 0.1> (a)", "y = Conv(r, w)"),
    ("r = PRelu(a, slope)", "y = Conv(r, w)"),
    ("r = Clip(a, zero)", "y = Conv(r, w)"),
    ("q = Relu(a) r = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (q)", "y = Conv <strides = [2, 2]> (r, w)"),
    ("q = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a) r = Relu(q)", "y = Conv(r, w)"),
    ("q = Relu(a) r = Pad(q, pads)", "y = Conv <pads = [1, 1, 1, 1]> (r, w)"),
    ("q = Relu(a) r = Pad <mode = \"reflect\"> (q, pads)", "y = Conv (r, w)"),
    ("q = Relu(a) r = Resize <mode = \"linear\"> (q, , twice)", "y = Conv (r, w)"),
    ("r = Relu(a)", "y = ConvTranspose <strides = [2, 2]> (r, u)"),
    ("q = Relu(a) p = GlobalAveragePool(q) r = Flatten(p)", "y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (r, g, c)"),
    ("r = Flatten(a)", "y = Gemm (r, h, c)"),
    ("", "y = Conv(a, w)"),
]  # fmt: skip


@pytest.mark.parametrize(("between", "last"), CHAINS)
def test_the_function_stays(build, assert_same, between, last):
    constants = {
        "slope": rand(6, 1, 1), "zero": np.float32(0), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "twice": np.array([1, 1, 2, 2], np.float32), "w": rand(3, 6, 3, 3), "u": rand(6, 3, 2, 2, spread=3),
        "g": rand(3, 6), "h": rand(6 * 64, 3), "c": rand(3),
    }  # fmt: skip
    words = f"{between} {last}".replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: np.asarray(array) for name, array in constants.items() if name in words}
    outputs = "float[N,3] y" if "Gemm" in last else "float[N,3,h2,w2] y"
    model = build(
        f"(float[N,2,8,8] x) => ({outputs}) {{ a = Conv <pads = [1, 1, 1, 1]> (x, v, b) {between} {last} }}",
        v=rand(6, 2, 3, 3, spread=30),
        b=rand(6),
        **used,
    )
    assert_same(model, equalize(model), rtol=2e-5)
    first, *_, second = [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": 1 if "transB" in last else 0}[second.op_type]
    into = greatest(second.inputs[1].const_value.numpy(), axis)
    np.testing.assert_allclose(into.reshape(6, -1).max(axis=1), greatest(first.inputs[1].const_value.numpy(), 0), 1e-5)


@pytest.mark.parametrize(
    ("group", "shape"), [(6, (6, 1, 3, 3)), (6, (12, 1, 3, 3)), (2, (4, 3, 3, 3)), (3, (6, 2, 1, 1))]
)
def test_three_layers_around_a_grouped_one(build, assert_same, group, shape):
    """Depthwise, depthwise with a multiplier, grouped: to convergence, after which a second run changes nothing."""
    model = build(
        f"(float[N,2,8,8] x) => (float[N,3,8,8] y) {{ a = Conv(x, v, b) r = Relu(a) "
        f"d = Conv <group = {group}, kernel_shape = [{shape[2]}, {shape[3]}], "
        f"pads = [{', '.join([str(shape[2] // 2)] * 4)}]> (r, w, c) e = Relu(d) y = Conv(e, u) }}",
        v=rand(6, 2, 1, 1, spread=20), b=rand(6), w=rand(*shape, spread=5), c=rand(shape[0]), u=rand(3, shape[0], 1, 1),
    )  # fmt: skip
    assert_same(model, equalize(model), rtol=2e-5)
    again = equalizing_scales(model)
    assert set(again) == {"a", "r", "d", "e"}
    for scale in again.values():
        np.testing.assert_allclose(scale, 1, atol=1e-3)
    if shape == (6, 1, 3, 3):  # DFQ's rule for three: all have the geometric mean of the three ranges
        first, depthwise, last = weights(model).values()
        np.testing.assert_allclose(greatest(first, 0), greatest(depthwise, 0), rtol=1e-3)
        np.testing.assert_allclose(greatest(last, 1), greatest(depthwise, 0), rtol=1e-3)


def test_transposed_and_grouped(build, assert_same):
    model = build(
        "(float[N,4,4,4] x) => (float[N,8,8,8] y) { a = ConvTranspose <group = 2, strides = [2, 2]> (x, v, b) "
        "r = Relu(a) y = ConvTranspose <group = 2> (r, w) }",
        v=rand(4, 3, 2, 2, spread=4), b=rand(6), w=rand(6, 4, 1, 1, spread=9),
    )  # fmt: skip
    assert_same(model, equalize(model), rtol=2e-5)


OBSTACLES = [
    "r = Relu(a) z = Neg(r) y = Conv(r, w)",  # read twice
    "r = Relu(a) z = Neg(a) y = Conv(r, w)",
    "z = Relu(a) y = Conv(z, w)",  # leaves the graph
    "r = Clip(a, zero, six) y = Conv(r, w) z = Neg(x)",  # a bound does not scale
    "r = Clip(a, one, none) y = Conv(r, w) z = Neg(x)",
    "r = Sigmoid(a) y = Conv(r, w) z = Neg(x)",
    "r = Add(a, one) y = Conv(r, w) z = Neg(x)",
    "r = Pad(a, pads, one) y = Conv(r, w) z = Neg(x)",  # padded by something else than zero
    "r = Pad(a, wider) y = Conv(r, twelve) z = Neg(x)",  # channels more
]


@pytest.mark.parametrize("body", OBSTACLES)
def test_what_ends_a_path(build, body):
    constants = {
        "zero": np.float32(0), "one": np.float32(1), "six": np.float32(6), "none": np.float32(np.inf),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "wider": np.array([0, 6, 0, 0, 0, 0, 0, 0], np.int64),
        "w": rand(3, 6, 1, 1), "twelve": rand(3, 12, 1, 1),
    }  # fmt: skip
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: np.asarray(array) for name, array in constants.items() if name in words}
    model = build(
        f"(float[N,2,8,8] x) => (float[N,3,h1,w1] y, float[N,c,h2,w2] z) {{ a = Conv(x, v) {body} }}",
        v=rand(6, 2, 1, 1, spread=9), **used,
    )  # fmt: skip
    assert equalizing_scales(model) == {}
    assert not equalize(model)(model).modified


def test_a_weight_of_another_reader_is_left_alone(build, assert_same):
    model = build(
        "(float[N,3,4,4] x, float[N,3,4,4] z) => (float[N,3,4,4] y, float[N,3,4,4] q) "
        "{ a = Conv(x, w) r = Relu(a) y = Conv(r, v) q = Conv(z, w) }",
        w=rand(3, 3, 1, 1, spread=9), v=rand(3, 3, 1, 1),
    )  # fmt: skip
    assert_same(model, equalize(model), rtol=2e-5)


def test_dead_channels_stay(build, assert_same):
    """No weights before, none behind, or next to none: no range to equalize, and nothing that becomes infinite."""
    first, second = rand(4, 2, 1, 1), rand(3, 4, 1, 1)
    first[0], second[:, 1], first[2] = 0, 0, 1e-9
    model = build(
        "(float[N,2,4,4] x) => (float[N,3,4,4] y) { a = Conv(x, v, b) r = Relu(a) y = Conv(r, w) }",
        v=first, b=rand(4), w=second,
    )  # fmt: skip
    scale = equalizing_scales(model)["a"]
    assert scale[:3].tolist() == [1, 1, 1]
    assert scale[3] != 1
    assert_same(model, equalize(model), rtol=2e-5)


@pytest.mark.parametrize("name", [slow("mobilenetv1_vww"), "resnet8_cifar10"])
def test_real_networks(shared_data, assert_same, name):
    model = load_model(shared_data / "models" / f"{name}.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    scales = equalizing_scales(model)
    assert len(scales) == {"mobilenetv1_vww": 56, "resnet8_cifar10": 6}[name]
    assert_same(model, EqualizeChannels(scales), rtol=1e-5)
