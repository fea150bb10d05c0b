"""Which values a target that adds within its convolutions leaves unquantized, and which constants have integers."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target
from passes.quant_points import find_quant_points

WEIGHTS = "float[2, 2, 1, 1] w = {1, 0, 0, 1}, float[1, 2, 1, 1] flat = {1, 2}"


def points(body: str, outputs: str = "float[N, 2, 4, 4] y") -> set[str]:
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, 2, 4, 4] x) => ({outputs}) <{WEIGHTS}> {{ {body} }}'
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    quantized = set(find_quant_points(model, load_target("ort")).activations)
    left = quantized - set(find_quant_points(model, load_target("openvino")).activations)
    return left


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
    assert points(body) == left


def test_an_output_of_the_network_is_quantized() -> None:
    assert points("a = Conv(x, w) y = Add(a, x)", "float[N, 2, 4, 4] y, float[N, 2, 4, 4] a") == set()


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
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N, 2, 1, 1] x) => (float[N, 2, 1, 1] y) <{WEIGHTS}, '
        f"float[2, 1, 1] mask = {{0, 1}}> {{ {body} }}"
    )
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    model.graph.initializers["mask"].const_value = ir.tensor(np.array([[[0]], [[-np.inf]]], np.float32))
    assert set(find_quant_points(model, load_target("ort")).constants) == found
