"""InsertQdq carries out a plan: against numbers by hand, and against what ONNX Runtime makes of the file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import find_quant_points
from passes.write.insert_qdq import InsertQdq

Build = Callable[..., ir.Model]

TARGET = load_target("ort")
CONV = """(float[N,2,4,4] x) => (float[N,3,4,4] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w, b)
    y = Relu (h)
}"""


def conv_weights() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {"w": random.normal(size=(3, 2, 3, 3)).astype("f4"), "b": random.normal(size=3).astype("f4")}


def quant(threshold: float, *, bits: int = 8, signed: bool = True, **more: Any) -> TensorQuant:
    return TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold), **more)


def per_channel(count: int, axis: int, *, bits: int = 8) -> TensorQuant:
    return TensorQuant(bits=bits, signed=True, threshold=np.full(count, 4.0), axis=axis)


def run(model: ir.Model, x: np.ndarray[Any, Any], optimized: Path | None = None) -> np.ndarray[Any, Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    if optimized is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_points_of_a_fused_relu(build: Build) -> None:
    points = find_quant_points(build(CONV, **conv_weights()), TARGET)
    assert points.activations == ("x", "y"), "the convolution's own output is never materialised"
    assert [(use.initializer, use.axis) for use in points.weights] == [("w", 0)]


def test_moves_share_their_source_and_shapes_are_no_points(build: Build) -> None:
    text = """(float[N,3,4,4] x) => (float[N,12] y) {
        p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x)
        s = Shape <start=0, end=1> (x)
        t = Concat <axis=0> (s, rest)
        y = Reshape (p, t)
    }"""
    points = find_quant_points(build(text, rest=np.array([12], "i8")), TARGET)
    assert points.activations == ("x",)
    assert points.same_as == {"p": "x", "y": "x"}
    assert points.weights == ()


def test_a_relu_with_a_second_reader_before_it_is_not_fused(build: Build) -> None:
    text = "(float[N,3] x) => (float[N,3] y) { h = Add (x, x)  r = Relu (h)  y = Add (r, h) }"
    assert find_quant_points(build(text), TARGET).activations == ("x", "h", "r", "y")


def test_a_relu_behind_a_move_is_not_fused(build: Build) -> None:
    """No runtime computes a Reshape and a Relu at once: what lies between the two is materialised."""
    text = "(float[N,4] x) => (float[N,2,2] y) { h = Add (x, x)  s = Reshape (h, to)  y = Relu (s) }"
    points = find_quant_points(build(text, to=np.array([0, 2, 2])), TARGET)
    assert points.activations == ("x", "h", "y") and points.same_as == {"s": "h"}


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("(float[N,2,4,4] x) => (float[N,3,5,5] y) { y = ConvTranspose (x, w) }", (2, 3, 2, 2), 1),
        ("(float[N,4] x) => (float[N,3] y) { y = Gemm (x, w) }", (4, 3), 1),
        ("(float[N,4] x) => (float[N,3] y) { y = Gemm <transB=1> (x, w) }", (3, 4), 0),
        ("(float[N,5,4] x) => (float[N,5,3] y) { y = MatMul (x, w) }", (4, 3), 1),
        ("(float[N,4,5] x) => (float[N,3,5] y) { y = MatMul (w, x) }", (3, 4), 0),
    ],
)
def test_weight_axes(build: Build, text: str, shape: tuple[int, ...], axis: int) -> None:
    (use,) = find_quant_points(build(text, w=np.ones(shape, "f4")), TARGET).weights
    assert (use.initializer, use.axis) == ("w", axis)


def test_the_graph_computes_what_the_plan_says(build: Build) -> None:
    model, weights = build(CONV, **conv_weights()), conv_weights()
    plan = QuantPlan(activations={"x": quant(4.0), "y": quant(8.0, signed=False)}, weights={"w": per_channel(3, 0)})
    x = np.random.default_rng(1).normal(size=(2, 2, 4, 4)).astype("f4")
    rounded = build(CONV, w=plan.weights["w"].round_trip(weights["w"]).astype("f4"), b=weights["b"])
    expected = plan.activations["y"].round_trip(run(rounded, plan.activations["x"].round_trip(x).astype("f4")))
    InsertQdq(plan, TARGET)(model)
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


def test_names_stay(build: Build) -> None:
    model = build(CONV, **conv_weights())
    plan = QuantPlan(activations={"x": quant(4.0), "y": quant(8.0, signed=False)}, weights={"w": per_channel(3, 0)})
    InsertQdq(plan, TARGET)(model)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    (weight,) = [node for node in model.graph if node.op_type == "DequantizeLinear" and node.outputs[0].name == "w"]
    assert weight.inputs[0] is not None and weight.inputs[0].const_value is not None
    assert weight.inputs[0].const_value.dtype == ir.DataType.INT8
    assert {"Conv_h", "Relu_y"} <= {node.name for node in model.graph}
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names))
    assert weight.metadata_props == {"dfq.bits": "s8", "dfq.threshold": "4"}


def test_signed_activations_stay_in_the_unsigned_container(build: Build) -> None:
    model = build(CONV, **conv_weights())
    InsertQdq(QuantPlan(activations={"x": quant(4.0)}, weights={}), TARGET)(model)
    zero = model.graph.initializers["x_zero_point"].const_value
    assert zero is not None and zero.dtype == ir.DataType.UINT8 and int(zero.numpy()) == 128


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True), (4, False), (2, False), (16, True)])
@pytest.mark.parametrize("container", ["int8", "uint8"])
def test_every_width_rounds_and_saturates(build: Build, container: Any, bits: int, signed: bool) -> None:
    model = build("(float[N,5] x) => (float[N,5] y) { y = Identity (x) }")
    plan = QuantPlan(activations={"x": quant(4.0, bits=bits, signed=signed)}, weights={})
    InsertQdq(plan, replace(TARGET, signed_activations=container))(model)
    x = np.array([[-9.0, -1.3, 0.0, 1.3, 9.0]], "f4")
    np.testing.assert_array_equal(run(model, x), plan.activations["x"].round_trip(x).astype("f4"))
    assert any(node.op_type == "Clip" for node in model.graph) == (bits < 8)


def test_a_clip_on_the_grid_moves_onto_the_integers(build: Build, tmp_path: Path) -> None:
    text = CONV.replace("Relu (h)", "Clip (h, low, high)")
    bounds = {"low": np.array(0, "f4"), "high": np.array(6, "f4")}
    plan = QuantPlan(
        activations={"x": quant(4.0), "y": quant(8.0, signed=False, clip=(0, 192))}, weights={"w": per_channel(3, 0)}
    )
    x = 3 * np.random.default_rng(1).normal(size=(2, 2, 4, 4)).astype("f4")
    kept, moved = build(text, **conv_weights(), **bounds), build(text, **conv_weights(), **bounds)
    whole = QuantPlan(activations={**plan.activations, "y": quant(8.0, signed=False)}, weights=plan.weights)
    InsertQdq(whole, TARGET)(kept)
    InsertQdq(plan, TARGET)(moved)
    np.testing.assert_array_equal(run(moved, x), run(kept, x))
    assert run(moved, x).max() == 6.0
    run(kept, x, tmp_path / "kept.onnx")
    run(moved, x, tmp_path / "moved.onnx")
    assert operators(tmp_path / "kept.onnx")["QLinearConv"] == 0, "a float Clip at 6 keeps the convolution float"
    assert operators(tmp_path / "moved.onnx")["QLinearConv"] == 1


@pytest.mark.parametrize(("clip", "inside"), [((0, 192), (0, 192)), ((16, 192), (0, 192)), ((-64, -8), (-64, 0))])
def test_what_is_selected_from_a_clipped_value_is_bounded_as_it_is(
    build: Build, clip: tuple[int, int], inside: tuple[int, int]
) -> None:
    """Only zero may come in, as the border of a Pad, and stays zero."""
    text = """(float[N,3,4,4] x) => (float[N,108] y) {
        h = Add (x, x)
        c = Clip (h, low, high)
        p = Pad (c, pads)
        y = Flatten (p)
    }"""
    grid = quant(8.0, signed=clip[0] < 0, clip=clip)
    low, high = (np.array(end * grid.scale, "f4") for end in clip)
    arrays = {"low": low, "high": high, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    x = 8 * np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype("f4")
    expected = grid.round_trip(run(build(text, **arrays), x))
    expected[run(build(text, **arrays), x) == 0] = 0  # the border
    model = build(text, **arrays)
    plan = QuantPlan(activations={"c": grid}, weights={}, same_as={"p": "c", "y": "c"})
    InsertQdq(plan, TARGET)(model)
    np.testing.assert_array_equal(run(model, x), expected.astype("f4"))
    ends = [plan.read_quant(name) for name in ("c", "p", "y")]
    assert [None if found is None else found.range for found in ends] == [clip, inside, inside]
    bounds = [node.inputs[1:] for node in model.graph if node.op_type == "Clip"]
    zero = 128 if grid.signed else 0
    assert [tuple(int(v.const_value.numpy()) - zero for v in found) for found in bounds] == [clip, inside, inside]  # type: ignore[union-attr]


def test_the_residual_sum_becomes_integer(build: Build, tmp_path: Path) -> None:
    text = """(float[N,2,4,4] x) => (float[N,2,4,4] y) {
        h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w, b)
        s = Add (h, x)
        y = Relu (s)
    }"""
    random = np.random.default_rng(0)
    model = build(text, w=random.normal(size=(2, 2, 3, 3)).astype("f4"), b=np.zeros(2, "f4"))
    plan = QuantPlan(
        activations={"x": quant(4.0), "h": quant(8.0), "y": quant(8.0, signed=False)}, weights={"w": per_channel(2, 0)}
    )
    InsertQdq(plan, TARGET)(model)
    run(model, random.normal(size=(1, 2, 4, 4)).astype("f4"), tmp_path / "optimized.onnx")
    found = operators(tmp_path / "optimized.onnx")
    assert (found["QLinearConv"], found["QLinearAdd"], found["Conv"], found["Add"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_bias_is_replaced_or_added(build: Build, has_bias: bool) -> None:
    text = CONV if has_bias else CONV.replace("(x, w, b)", "(x, w)")
    weights = conv_weights() if has_bias else {"w": conv_weights()["w"]}
    model = build(text, **weights)
    x = np.zeros((1, 2, 4, 4), "f4")
    InsertQdq(QuantPlan(activations={}, weights={}, biases={"Conv_h": np.array([1, 2, 3], "f4")}), TARGET)(model)
    np.testing.assert_array_equal(run(model, x)[0, :, 0, 0], [1, 2, 3])
    if has_bias:
        assert set(model.graph.initializers) == {"w", "b"}, "the corrected bias keeps the bias's name"


def test_a_plan_for_another_graph_is_refused(build: Build) -> None:
    plan = QuantPlan(activations={"nowhere": quant(1.0)}, weights={})
    with pytest.raises(ir.passes.PreconditionError, match="nowhere"):
        InsertQdq(plan, TARGET)(build(CONV, **conv_weights()))
