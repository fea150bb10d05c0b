"""Models of other float types become float32 models that compute the same; a stray constant makes none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxdfq
from onnxdfq.model_file import load_model
from onnxdfq.model_file.loading import CONVERTED

from .conftest import run, saved, weight

TYPES = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16), 5e-3),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 0.0),
    "float64": (TensorProto.DOUBLE, np.dtype(np.float64), 1e-5),
}


def build(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, NDArray[Any]], given: int, computed: int, opset: int = 17
) -> onnx.ModelProto:
    """From x (batch, 3, 8, 8) to y, of these types."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", given, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", computed, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small_net(name: str) -> onnx.ModelProto:
    """conv, a sum with a constant of the type, relu, mean."""
    element, dtype, _ = TYPES[name]
    half = numpy_helper.from_array(np.full(1, 0.5).astype(dtype), "value")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Add", ["conv", "half"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["y"], name="mean"),
    ]
    return build(nodes, {"w": weight(4, 3, 3, 3).astype(dtype)}, element, element)


def by_hand(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, w) + 0.5
    return np.asarray(np.maximum(sums, 0).mean(axis=(2, 3), keepdims=True))


def types_of(model: ir.Model) -> set[ir.DataType]:
    """Of all values and weights, those of subgraphs too."""
    found = {value.dtype for graph in model.graphs() for value in (*graph.inputs, *graph.outputs)}
    found |= {v.const_value.dtype for g in model.graphs() for v in g.initializers.values() if v.const_value is not None}
    found |= {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    return {dtype for dtype in found if dtype is not None}


@pytest.mark.parametrize("name", TYPES)
def test_inputs_weights_constants_and_outputs_become_float32(tmp_path: Path, name: str) -> None:
    model = load_model(saved(small_net(name), tmp_path))
    assert model.metadata_props[CONVERTED] == name
    assert types_of(model) == {ir.DataType.FLOAT}
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    rounded = weight(4, 3, 3, 3).astype(TYPES[name][1]).astype(np.float32)
    np.testing.assert_allclose(run(model, x), by_hand(x, rounded), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["float16"])
def test_the_file_itself_computes_as_much_up_to_its_rounding(tmp_path: Path, name: str) -> None:
    path = saved(small_net(name), tmp_path)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(TYPES[name][1])
    found = run(load_model(path), x.astype(np.float32))
    np.testing.assert_allclose(found, run(path, x), rtol=TYPES[name][2], atol=TYPES[name][2])


def test_casts_between_float32_and_float16_cast_no_more(tmp_path: Path) -> None:
    """Mixed: a float32 boundary, layers of float16 between casts, one number of float32 beside them."""
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16, name="down"),
        helper.make_node("Conv", ["low", "w"], ["conv"], name="conv"),
        helper.make_node("Cast", ["conv"], ["high"], to=TensorProto.FLOAT, name="up"),
        helper.make_node("Mul", ["high", "two"], ["y"], name="mul"),
    ]
    weights = {"w": weight(4, 3, 3, 3).astype(np.float16), "two": np.array(2, np.float32)}
    path = saved(build(nodes, weights, TensorProto.FLOAT, TensorProto.FLOAT), tmp_path)
    model = load_model(path)
    assert model.metadata_props[CONVERTED] == "float16"
    assert types_of(model) == {ir.DataType.FLOAT}
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(path, x), rtol=1e-2, atol=1e-2)


def test_weights_that_are_cast_in_front_of_their_layer(tmp_path: Path) -> None:
    """Weights kept as float16 for a float32 network: no layer is of float16, and the file stays what it is."""
    nodes = [
        helper.make_node("Cast", ["w16"], ["w"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    w16 = weight(4, 3, 3, 3).astype(np.float16)
    path = saved(build(nodes, {"w16": w16}, TensorProto.FLOAT, TensorProto.FLOAT), tmp_path)
    model = load_model(path)
    assert CONVERTED not in model.metadata_props
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(path, x), rtol=1e-5, atol=1e-6)


def test_numbers_that_nodes_fill_in_are_float32_too(tmp_path: Path) -> None:
    zeros = numpy_helper.from_array(np.full(1, 1.5, np.float16), "value")
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["full"], value=zeros, name="fill"),
        helper.make_node("Add", ["x", "full"], ["sum"], name="add"),
        helper.make_node("Conv", ["sum", "w"], ["y"], name="conv"),
    ]
    w = weight(4, 3, 1, 1).astype(np.float16)
    model = load_model(saved(build(nodes, {"w": w}, TensorProto.FLOAT16, TensorProto.FLOAT16), tmp_path))
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = np.einsum("nchw,oc->nohw", x + 1.5, w[:, :, 0, 0].astype(np.float32))
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_branches_are_float32_too(tmp_path: Path) -> None:
    def branch(name: str, value: float) -> onnx.GraphProto:
        nodes = [helper.make_node("Add", ["conv", f"{name}_c"], [f"{name}_y"], name=f"{name}_add")]
        constant = numpy_helper.from_array(np.array(value, np.float16), f"{name}_c")
        outputs = [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT16, None)]
        return helper.make_graph(nodes, name, [], outputs, [constant])

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0, name="sum"),
        helper.make_node("Greater", ["total", "zero"], ["positive"], name="greater"),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a", 1), else_branch=branch("b", 2), name="if"),
    ]
    weights = {"w": weight(2, 3, 1, 1).astype(np.float16), "zero": np.array(0, np.float16)}
    model = load_model(saved(build(nodes, weights, TensorProto.FLOAT16, TensorProto.FLOAT16), tmp_path))
    assert types_of(model) <= {ir.DataType.FLOAT, ir.DataType.BOOL}
    for sign, shift in ((1, 1.0), (-1, 2.0)):
        x = sign * np.ones((1, 3, 8, 8), np.float32)
        expected = np.einsum("nchw,oc->nohw", x, weights["w"][:, :, 0, 0].astype(np.float32)) + shift
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_a_float64_constant_of_a_float32_network_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Cast", ["conv"], ["wide"], to=TensorProto.DOUBLE, name="wide"),
        helper.make_node("Mul", ["wide", "third"], ["scaled"], name="mul"),
        helper.make_node("Cast", ["scaled"], ["y"], to=TensorProto.FLOAT, name="narrow"),
    ]
    weights = {"w": weight(4, 3, 1, 1), "third": np.array(1 / 3)}
    path = saved(build(nodes, weights, TensorProto.FLOAT, TensorProto.FLOAT), tmp_path)
    model = load_model(path)
    assert CONVERTED not in model.metadata_props and ir.DataType.DOUBLE in types_of(model)
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(path, x), rtol=1e-6)


def test_numbers_in_a_list_of_protobuf(tmp_path: Path) -> None:
    """float16 bits in `int32_data`, as some exporters store them."""
    proto = small_net("float16")
    w = weight(4, 3, 3, 3).astype(np.float16)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=w.shape)
    tensor.int32_data.extend(w.view(np.uint16).reshape(-1).astype(int).tolist())
    proto.graph.initializer[0].CopyFrom(tensor)
    model = load_model(saved(proto, tmp_path))
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), by_hand(x, w.astype(np.float32)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("opset", [9, 13])
def test_outputs_of_a_batch_normalization_that_nothing_reads(tmp_path: Path, opset: int) -> None:
    parameters = {
        "scale": np.array([1, 2, 3], np.float32),
        "bias": np.array([0, 1, 2], np.float32),
        "mean": np.array([1, 0, -1], np.float32),
        "var": np.array([1, 4, 9], np.float32),
    }
    outputs = ["y", "mean_out", "var_out", "saved_mean", "saved_var"]
    nodes = [helper.make_node("BatchNormalization", ["x", *parameters], outputs, name="bn", epsilon=0.0)]
    model = load_model(saved(build(nodes, parameters, TensorProto.FLOAT, TensorProto.FLOAT, opset), tmp_path))
    assert [len(node.outputs) for node in model.graph] == [1]
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = np.stack([x[:, 0] - 1, x[:, 1] + 1, x[:, 2] + 3], axis=1)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TYPES)
def test_a_written_file_takes_and_gives_float32_and_says_so(tmp_path: Path, name: str) -> None:

    path = saved(small_net(name), tmp_path)
    result = onnxdfq.compress(path, method="noise", images=8, normalize="none")
    assert any(
        note.startswith(f"The model is of {name}; it is computed and written in float32") for note in result.notes
    )
    session = onnxruntime.InferenceSession(result.path, providers=["CPUExecutionProvider"])
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
