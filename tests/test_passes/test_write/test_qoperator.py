"""ToQOperator against the Quantize/Dequantize graph that it starts from."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import find_quant_points
from passes.write.insert_qdq import InsertQdq
from passes.write.qoperator import ToQOperator

Array = np.ndarray[Any, Any]
Build = Callable[..., ir.Model]
RunOn = Callable[..., dict[str, Array]]

TFLITE = load_target("tflite")


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype("f4")


def quantized(model: ir.Model, *, unsigned: tuple[str, ...] = (), free: bool = True, **thresholds: float) -> ir.Model:
    """Every point of the graph quantized: thresholds by name, else 4; free: with steps that are no powers of two."""
    points = find_quant_points(model, TFLITE)
    factor = 0.9 if free else 1.0
    activations = {
        name: TensorQuant(bits=8, signed=name not in unsigned, threshold=np.asarray(factor * thresholds.get(name, 4.0)))
        for name in points.activations
    }
    weights = {}
    for use in points.weights:
        tensor = model.graph.initializers[use.initializer].const_value
        assert tensor is not None
        count = () if use.axis is None else (tensor.shape[use.axis],)
        weights[use.initializer] = TensorQuant(
            bits=8, signed=True, axis=use.axis, threshold=np.full(count, 3.0 * factor), clip=(-127, 127)
        )
    InsertQdq(QuantPlan(activations=activations, weights=weights, same_as=points.same_as), TFLITE)(model)
    return model


CONV = "Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2], dilations=[1,1], group=1>"
IMAGE = "(float[N,4,6,6] x) => (float[N,c,h,k] y)"
CASES: dict[str, tuple[str, dict[str, Array], dict[str, int]]] = {
    "conv": (f"{IMAGE} {{ y = {CONV} (x, w, b) }}", {"w": random(8, 4, 3, 3), "b": random(8)}, {"QLinearConv": 1}),
    "conv without a bias": (f"{IMAGE} {{ y = {CONV} (x, w) }}", {"w": random(8, 4, 3, 3)}, {"QLinearConv": 1}),
    "depthwise": (
        f"{IMAGE} {{ y = {CONV.replace('group=1', 'group=4')} (x, w, b) }}",
        {"w": random(4, 1, 3, 3), "b": random(4)},
        {"QLinearConv": 1},
    ),
    "conv and relu": (
        f"{IMAGE} {{ h = {CONV} (x, w, b)  y = Relu (h) }}",
        {"w": random(8, 4, 3, 3), "b": random(8)},
        {"QLinearConv": 1},
    ),
    "gemm": (
        "(float[N,5] x) => (float[N,3] y) { y = Gemm (x, w, b) }",
        {"w": random(5, 3), "b": random(3)},
        {"Unsqueeze": 1, "QLinearConv": 1, "Flatten": 1},
    ),
    "gemm, transposed": (
        "(float[N,5] x) => (float[N,3] y) { h = Gemm <transB=1> (x, w, b)  y = Relu (h) }",
        {"w": random(3, 5), "b": random(3)},
        {"Unsqueeze": 1, "QLinearConv": 1, "Flatten": 1},
    ),
    "matmul": (
        "(float[N,2,5] x) => (float[N,2,3] y) { y = MatMul (x, w) }",
        {"w": random(5, 3)},
        {"QLinearMatMul": 1},
    ),
    "matmul of two activations": (
        "(float[N,5,5] x) => (float[N,5,5] y) { t = Transpose <perm=[0,2,1]> (x)  y = MatMul (x, t) }",
        {},
        {"Transpose": 1, "QLinearMatMul": 1},
    ),
    "residual": (
        f"{IMAGE} {{ a = {CONV.replace('strides=[2,2]', 'strides=[1,1]')} (x, w, b)  s = Add (a, x)  y = Relu (s) }}",
        {"w": random(4, 4, 3, 3), "b": random(4)},
        {"QLinearConv": 1, "QLinearAdd": 1},
    ),
    "product": (f"{IMAGE} {{ a = Sigmoid (x)  y = Mul (x, a) }}", {}, {"QLinearSigmoid": 1, "QLinearMul": 1}),
    "concat": (
        f"{IMAGE} {{ a = LeakyRelu <alpha=0.2> (x)  y = Concat <axis=1> (a, x) }}",
        {},
        {"QLinearLeakyRelu": 1, "QLinearConcat": 1},
    ),
    "pools": (
        """(float[N,4,6,6] x) => (float[N,4] y) {
            m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)
            a = AveragePool <kernel_shape=[3,3], strides=[1,1], pads=[1,1,1,1]> (m)
            g = GlobalAveragePool (a)
            y = Flatten (g)
        }""",
        {},
        {"MaxPool": 1, "QLinearAveragePool": 1, "QLinearGlobalAveragePool": 1, "Flatten": 1},
    ),
    "softmax": ("(float[N,5] x) => (float[N,5] y) { y = Softmax (x) }", {}, {"QLinearSoftmax": 1}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("free", [True, False])
def test_each_operator_computes_on_integers_what_it_computed_in_float(
    case: str, free: bool, build: Build, run_on: RunOn
) -> None:
    text, weights, expected = CASES[case]
    unsigned = ("y",) if "relu" in case or case in ("softmax", "residual", "gemm, transposed") else ()
    thresholds = {"y": 1.0} if case == "softmax" else {"y": 16.0}
    model = quantized(build(text, opset=17, **weights), unsigned=unsigned, free=free, **thresholds)
    shape = [3 if not isinstance(size, int) else size for size in model.graph.inputs[0].shape or ()]
    x = random(*shape, seed=1)
    before = run_on(model, x=x)["y"]
    assert ToQOperator()(model).modified
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = Counter(node.op_type for node in model.graph)
    assert found.pop("QuantizeLinear") == 1 and found.pop("DequantizeLinear") == 1, "only at the door"
    assert found == expected
    scale = model.graph.initializers["y_scale" if "y_scale" in model.graph.initializers else "x_scale"].const_value
    assert scale is not None
    # ONNX Runtime's QLinear kernels round the bias and the products of scales in another order: one step at most
    np.testing.assert_allclose(run_on(model, x=x)["y"], before, atol=1.01 * float(scale.numpy()))
    assert np.abs(before).max() > 10 * float(scale.numpy())


@pytest.mark.parametrize(
    ("function", "signed"), [("Relu (h)", True), ("Clip (h, low, high)", True), ("Clip (h, low, high)", False)]
)
def test_a_function_that_saturation_does_not_do_bounds_the_integers(
    function: str, signed: bool, build: Build, run_on: RunOn
) -> None:
    text = f"{IMAGE} {{ h = {CONV} (x, w)  y = {function} }}"
    weights = {"w": random(8, 4, 3, 3)} | (
        {"low": np.array(0, "f4"), "high": np.array(3, "f4")} if "Clip" in function else {}
    )
    model = quantized(build(text, opset=17, **weights), unsigned=() if signed else ("y",))
    x = random(3, 4, 6, 6, seed=1)
    before = run_on(model, x=x)["y"]
    ToQOperator()(model)
    found = Counter(node.op_type for node in model.graph)
    assert found == {"QuantizeLinear": 1, "QLinearConv": 1, "Clip": 1, "DequantizeLinear": 1}
    np.testing.assert_allclose(run_on(model, x=x)["y"], before, atol=1.01 * 3.6 / 128)


def test_what_has_no_integer_form_stays_between_its_pair(build: Build, run_on: RunOn) -> None:
    model = quantized(build(f"{IMAGE} {{ a = Tanh (x)  y = Neg (a) }}", opset=17))
    before = run_on(model, x=random(2, 4, 6, 6))["y"]
    assert not ToQOperator()(model).modified
    assert "com.microsoft" not in model.opset_imports
    np.testing.assert_array_equal(run_on(model, x=random(2, 4, 6, 6))["y"], before)


def test_a_value_that_leaves_in_float_keeps_its_operator(build: Build) -> None:
    text = "(float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] h) { h = Add (x, x)  y = Add (h, x) }"
    model = build(text, opset=17)
    plan = QuantPlan(activations={"x": TensorQuant(bits=8, signed=True, threshold=np.asarray(4.0))}, weights={})
    InsertQdq(plan, TFLITE)(model)
    assert not ToQOperator()(model).modified


def test_a_float_bias_keeps_its_layer_float(build: Build) -> None:
    model = build(f"{IMAGE} {{ y = {CONV} (x, w, b) }}", opset=17, w=random(8, 4, 3, 3), b=random(8))
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(4.0))
    plan = QuantPlan(activations={"x": quant, "y": quant}, weights={"w": quant})
    InsertQdq(plan, replace(TFLITE, bias="float"))(model)
    assert not ToQOperator()(model).modified
