"""Which values a target leaves unquantized as it computes them within others, and which constants have integers."""

import numpy as np
import pytest

from onnxdfq.targets import load_target
from passes.quantize.points import find_quant_points

from ...graphs import build

WEIGHTS = {
    "w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
    "flat": np.array([1, 2], np.float32).reshape(1, 2, 1, 1),
    "v": np.array([1, 2], np.float32),
}


def unquantized(target: str, body: str, outputs: str = "float[N, 2, 4, 4] y") -> set[str]:
    """Computed values that have no grid, of their own or another's."""
    model = build(f"(float[N, 2, 4, 4] x) => ({outputs}) {{ {body} }}", **WEIGHTS)
    found = find_quant_points(model, load_target(target))
    return {value.name for node in model.graph for value in node.outputs} - {*found.activations, *found.same_as}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Conv(x, w) y = Add(a, x)", {"a"}),
        ("a = Conv(x, w) y = Add(x, a)", {"a"}),
        ("a = Conv(x, w) b = Conv(x, w) y = Add(a, b)", {"b"}),
        ("a = Conv(x, w) b = Conv(a, w) c = Relu(b) y = Add(c, a)", set()),
        ("a = Conv(x, w) b = Conv(a, w) s = Add(b, a) y = Relu(s)", {"b"}),
        ("a = Conv(x, w) y = Add(a, a)", set()),
        ("a = Conv(x, w) y = Mul(a, x)", set()),
        ("a = Conv(x, w) y = Add(a, flat)", set()),
        ("a = MaxPool<kernel_shape=[1, 1]>(x) y = Add(a, x)", set()),
        ("a = Conv(x, w) b = Conv(x, flat) y = Add(a, b)", set()),
    ],
)
def test_a_convolution_adds_what_is_there_already(body: str, left: set[str]) -> None:
    assert unquantized("openvino", body) - unquantized("ort", body) == left


def test_an_output_of_the_network_is_quantized() -> None:
    assert not unquantized("openvino", "a = Conv(x, w) y = Add(a, x)", "float[N, 2, 4, 4] y, float[N, 2, 4, 4] a")


NORM = "BatchNormalization({}, v, v, v, v)"


@pytest.mark.parametrize(
    ("body", "within"),
    [
        (f"a = Gelu(x) y = {NORM.format('a')}", {"a"}),
        (f"a = Conv(x, w) b = Gelu(a) c = {NORM.format('b')} y = Add(c, x)", {"b"}),
        (f"a = Elu(x) b = {NORM.format('a')} c = Tanh(b) y = Conv(c, w)", {"a", "b"}),
        ("a = Exp(x) y = Sub(a, flat)", {"a"}),
        (f"a = Gelu(x) b = {NORM.format('a')} y = Add(b, a)", set()),  # another reads it
        (f"a = Gelu(x) b = MaxPool<kernel_shape=[1, 1]>(a) y = {NORM.format('b')}", set()),
        (f"a = Sigmoid(x) y = {NORM.format('a')}", set()),  # it has an integer kernel
        ("a = Gelu(x) y = Mul(a, flat)", set()),
        ("a = Gelu(x) y = Softmax(a)", set()),
    ],
)
def test_a_function_computed_in_float_is_quantized_once(body: str, within: set[str]) -> None:
    assert unquantized("ort", body) == within
    assert not unquantized("qnn", body)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        # cosine attention: numbers over their norm, which a grid would round to 0
        ("n = ReduceL2(a, axes) c = Clip(n, least) y = Div(a, c)", {"n", "c"}),
        ("n = ReduceL2(a, axes) c = Clip(n, least) e = Expand(c, shape) y = Div(a, e)", {"n", "c", "e"}),
        ("n = Exp(a) c = Relu(n) y = Sub(a, c)", {"n", "c"}),
        ("n = Exp(a) c = Relu(n) y = Conv(c, w)", {"n"}),  # a layer reads it
        ("c = Relu(a) y = Sub(x, c)", {"a"}),  # a layer computed it: c has a grid
        ("n = Exp(a) c = Relu(n) s = Sub(a, c) y = Mul(s, c)", {"n"}),  # something on integers reads it as well
    ],
)
def test_what_is_bounded_between_float_operators_stays_float(body: str, left: set[str]) -> None:
    model = build(
        f"(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {{ a = Conv(x, w) {body} }}",
        axes=np.array([1]),
        shape=np.array([1, 2, 1, 1]),
        least=np.array(1e-12, np.float32),
        **WEIGHTS,
    )
    found = find_quant_points(model, load_target("ort"))
    assert {value.name for node in model.graph for value in node.outputs} - {*found.activations, *found.same_as} == left


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("a = Relu(x) y = Mul(a, flat)", {"flat"}),
        ("a = Relu(x) y = Add(flat, a)", {"flat"}),
        ("a = Relu(x) b = Mul(a, flat) y = Add(b, flat)", {"flat"}),
        ("a = Conv(x, w) b = Mul(a, w) y = Conv(b, w)", set()),  # a layer multiplies with it, too
        ("a = Relu(x) y = Add(a, mask)", set()),
        ("a = Relu(x) y = Max(a, flat)", set()),
        ("y = Sub(x, flat)", set()),  # ONNX Runtime has no integer kernel for that
    ],
)
def test_constants_of_elementwise_operators(body: str, found: set[str]) -> None:
    mask = np.array([[[0]], [[-np.inf]]], np.float32)
    model = build(f"(float[N, 2, 1, 1] x) => (float[N, 2, 1, 1] y) {{ {body} }}", mask=mask, **WEIGHTS)
    assert set(find_quant_points(model, load_target("ort")).constants) == found
