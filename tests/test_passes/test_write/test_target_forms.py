"""The forms that targets want of weights, activations and biases: types by hand, numbers by ONNX Runtime."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.write.biases import accumulator_scale
from passes.write.insert_qdq import InsertQdq
from passes.write.write_for_target import WriteForTarget, written_opset

Array = np.ndarray[Any, Any]
Build = Callable[..., ir.Model]
RunOn = Callable[..., dict[str, Array]]

CONV = """(float[N,2,4,4] x) => (float[N,3,4,4] y) {
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w, b)
}"""


def conv_weights() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {"w": random.normal(size=(3, 2, 3, 3)).astype("f4"), "b": random.normal(size=3).astype("f4")}


def conv_plan(*, bits: int = 8, signed: bool = True, axis: int | None = 0, **more: Any) -> QuantPlan:
    threshold = np.asarray(3.0) if axis is None else np.array([2.0, 3.0, 4.0])
    weight = TensorQuant(bits=bits, signed=True, axis=axis, threshold=threshold)
    activations = {
        "x": TensorQuant(bits=8, signed=True, threshold=np.asarray(4.0)),
        "y": TensorQuant(bits=8, signed=signed, threshold=np.asarray(12.0)),
    }
    return QuantPlan(activations=activations, weights={"w": weight}, **more)


def dequantizer(model: ir.Model, output: str) -> tuple[ir.DataType, Array, Array, Array]:
    """Type, integers, scale and zero point of the DequantizeLinear that computes `output` from a constant."""
    (node,) = [node for node in model.graph if node.outputs[0].name == output]
    tensors = [value.const_value for value in node.inputs if value is not None]
    assert tensors[0] is not None and tensors[1] is not None and tensors[2] is not None
    assert tensors[0].dtype == tensors[2].dtype
    return ir.DataType(tensors[0].dtype), tensors[0].numpy(), tensors[1].numpy(), tensors[2].numpy()


@pytest.mark.parametrize(
    ("bits", "container", "bytes_"),
    [(8, "INT8", 54), (5, "INT8", 54), (4, "INT4", 27), (3, "INT4", 27), (2, "INT2", 14)],
)
def test_compact_weights_take_the_narrowest_container(
    bits: int, container: str, bytes_: int, build: Build, run_on: RunOn
) -> None:
    model, plan, target = build(CONV, **conv_weights()), conv_plan(bits=bits), load_target("compact")
    WriteForTarget(plan, target)(model)
    dtype, integers, scale, zero = dequantizer(model, "w")
    assert dtype == ir.DataType[container]
    np.testing.assert_array_equal(integers.astype(int), plan.weights["w"].integers(conv_weights()["w"]))
    np.testing.assert_array_equal(scale, plan.weights["w"].scale.astype("f4"))
    assert not zero.astype(int).any()
    stored = model.graph.initializers["w_quantized"].const_value
    assert stored is not None and stored.nbytes == len(stored.tobytes()) == bytes_
    assert model.opset_imports[""] == (25 if bits == 2 else 21)
    assert model.ir_version == (13 if bits == 2 else 10)
    x = np.random.default_rng(1).normal(size=(2, 2, 4, 4)).astype("f4")
    wide = build(CONV, **conv_weights())
    WriteForTarget(plan, load_target("generic"))(wide)
    np.testing.assert_array_equal(run_on(model, x=x)["y"], run_on(wide, x=x)["y"])


def test_integers_that_tuning_found_are_written_in_every_container(build: Build) -> None:
    found = np.random.default_rng(2).integers(-2, 2, size=(3, 2, 3, 3)).astype(np.int8)
    for name in ("compact", "ort", "tflite"):
        model = build(CONV, **conv_weights())
        InsertQdq(conv_plan(bits=2, integers={"w": found}), load_target(name))(model)
        np.testing.assert_array_equal(dequantizer(model, "w")[1].astype(np.int8), found)


@pytest.mark.parametrize(
    ("target", "signed", "container", "zero"),
    [
        ("ort", True, "UINT8", 128), ("ort", False, "UINT8", 0), ("openvino", True, "INT8", 0),
        ("openvino", False, "UINT8", 0), ("tensorrt", True, "INT8", 0), ("vitisai", True, "INT8", 0),
        ("tflite", True, "INT8", 0), ("tflite", False, "INT8", -128), ("qnn", True, "UINT8", 128),
        ("qnn", False, "UINT8", 0), ("generic", True, "INT8", 0), ("generic", False, "UINT8", 0),
    ],
)  # fmt: skip
def test_activation_containers(
    target: str, signed: bool, container: str, zero: int, build: Build, run_on: RunOn
) -> None:
    model, plan = build(CONV, **conv_weights()), conv_plan(signed=signed)
    InsertQdq(replace(plan, weights={}), replace(load_target(target), bias="float"))(model)
    tensor = model.graph.initializers["y_zero_point"].const_value
    assert tensor is not None and tensor.dtype == ir.DataType[container] and int(tensor.numpy()) == zero
    x = 4 * np.random.default_rng(1).normal(size=(2, 2, 4, 4)).astype("f4")
    rounded = plan.activations["x"].round_trip(x).astype("f4")
    expected = plan.activations["y"].round_trip(run_on(build(CONV, **conv_weights()), x=rounded)["y"])
    np.testing.assert_allclose(run_on(model, x=x)["y"], expected, atol=1e-6)


@pytest.mark.parametrize(("bits", "signed"), [(16, True), (16, False), (4, True), (4, False)])
@pytest.mark.parametrize("target", ["tflite", "generic", "ort"])
def test_other_widths_without_a_sign(target: str, bits: int, signed: bool, build: Build, run_on: RunOn) -> None:
    quant = TensorQuant(bits=bits, signed=signed, threshold=np.asarray(4.0))
    model = build("(float[N,5] x) => (float[N,5] y) { y = Identity (x) }")
    InsertQdq(QuantPlan(activations={"x": quant}, weights={}), load_target(target))(model)
    x = np.array([[-9.0, -1.3, 0.0, 1.3, 9.0]], "f4")
    np.testing.assert_array_equal(run_on(model, x=x)["y"], quant.round_trip(x).astype("f4"))


def test_what_a_target_has_no_form_for_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"no sign at y, and NVIDIA TensorRT 10 takes only grids with a sign"):
        InsertQdq(conv_plan(signed=False), load_target("tensorrt"))(build(CONV, **conv_weights()))
    plan = conv_plan()
    plan = replace(plan, activations={"x": replace(plan.activations["x"], bits=4)})
    with pytest.raises(ValueError, match="bounds x within int8"):
        InsertQdq(plan, load_target("tensorrt"))(build(CONV, **conv_weights()))


@pytest.mark.parametrize("axis", [0, None])
def test_an_int32_bias_lies_exactly_on_the_accumulator(axis: int | None, build: Build, run_on: RunOn) -> None:
    model, plan = build(CONV, **conv_weights()), conv_plan(axis=axis)
    InsertQdq(plan, load_target("qnn"))(model)
    dtype, integers, scale, zero = dequantizer(model, "b")
    assert dtype == ir.DataType.INT32 and not zero.any()
    product = np.float32(4.0 / 128) * plan.weights["w"].scale.astype("f4")
    assert scale.dtype == np.float32 and scale.shape == (() if axis is None else (3,))
    np.testing.assert_array_equal(scale, product)
    np.testing.assert_array_equal(integers, np.rint(conv_weights()["b"] / product.astype(np.float64)))
    assert {node.attributes.get_int("axis") for node in model.graph if node.outputs[0].name == "b"} == {axis}
    x = np.random.default_rng(1).normal(size=(1, 2, 4, 4)).astype("f4")
    kept = build(CONV, **conv_weights())
    InsertQdq(plan, load_target("ort"))(kept)
    np.testing.assert_allclose(run_on(model, x=x)["y"], run_on(kept, x=x)["y"], atol=1.01 * 12 / 128)


def test_an_int8_bias_has_a_scale_of_its_own(build: Build) -> None:
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(2.0))
    model = build(CONV, **conv_weights())
    InsertQdq(conv_plan(axis=None, bias_quants={"Conv_y": quant}), load_target("vitisai"))(model)
    dtype, integers, scale, zero = dequantizer(model, "b")
    assert dtype == ir.DataType.INT8 and scale == 2.0 / 128 and zero == 0
    np.testing.assert_array_equal(integers, np.rint(conv_weights()["b"] * 64))


def test_a_bias_beside_a_float_input_stays_float(build: Build) -> None:
    model = build(CONV, **conv_weights())
    InsertQdq(replace(conv_plan(), activations={}), load_target("qnn"))(model)
    assert model.graph.initializers["b"].dtype == ir.DataType.FLOAT


def test_the_accumulator_of_each_layer(build: Build) -> None:
    """Channels of a grouped ConvTranspose repeat those of the weight; a Gemm with factors has no accumulator grid."""
    transposed = build(
        "(float[N,4,4,4] x) => (float[N,6,5,5] y) { y = ConvTranspose <group=2> (x, w) }", w=np.ones((4, 3, 2, 2), "f4")
    )
    found = accumulator_scale(transposed.graph[0], np.float64(0.5), np.array([1.0, 2.0, 3.0]), 6)
    np.testing.assert_array_equal(found, [0.5, 1.0, 1.5, 0.5, 1.0, 1.5])
    gemm = build("(float[N,4] x) => (float[N,3] y) { y = Gemm <alpha=0.5> (x, w) }", w=np.ones((4, 3), "f4"))
    assert accumulator_scale(gemm.graph[0], np.float64(0.5), np.ones(3), 3) is None


@pytest.mark.parametrize(
    ("target", "model", "bits", "activation", "written"),
    [
        ("ort", 23, 8, 8, 23), ("ort", 21, 2, 16, 21), ("generic", 25, 8, 8, 21), ("vitisai", 21, 8, 8, 17),
        ("compact", 21, 4, 8, 21), ("compact", 21, 2, 8, 25), ("tensorrt", 21, 8, 8, 20), ("qnn", 18, 8, 16, 21),
    ],
)  # fmt: skip
def test_the_opset_that_is_written(
    target: str, model: int, bits: int, activation: int, written: int, build: Build
) -> None:
    plan = conv_plan(bits=bits)
    plan = replace(plan, activations={"x": replace(plan.activations["x"], bits=activation)})
    assert written_opset(build(CONV, opset=model, **conv_weights()), plan, load_target(target)) == written


def test_static_shapes_are_written_where_the_target_wants_them(build: Build) -> None:
    for name, batch in (("qnn", 1), ("ort", "N")):
        model = build(CONV, **conv_weights())
        WriteForTarget(conv_plan(), load_target(name))(model)
        shapes = [value.shape for value in (*model.graph.inputs, *model.graph.outputs)]
        assert [str(shape[0]) for shape in shapes if shape is not None] == [str(batch)] * 2
