"""No file goes further that ONNX Runtime does not run, none is read beyond its folder or all bounds, and what is
valid and rare is read as ONNX Runtime reads it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.errors import ModelFileError, ShapeError
from onnxdfq.evaluation import Session
from onnxdfq.model_file import Opened, Opening, load_model, read_model
from onnxdfq.model_file.tasks import limits_for, limits_of
from onnxdfq.sandbox import Limits

from .conftest import assert_same_function, build, conv_net, noise, run, saved, weight


def opened(path: Path, **arguments: Any) -> Opened:
    with Opening(path, **arguments) as found:
        found.check()
        return found.opened()


def with_function(name: str, body: list[onnx.NodeProto], *, domain: str = "local") -> onnx.ModelProto:
    """x, a call of the function, y."""
    proto = build([helper.make_node(name, ["x"], ["y"], domain=domain)], {})
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(
        helper.make_function(domain, name, ["a"], ["b"], body, [helper.make_opsetid("", 17), *proto.opset_import[1:]])
    )
    return proto


def test_many_nodes_have_more_time(tmp_path: Path) -> None:
    names = ["x", *(f"v{number}" for number in range(9_999)), "y"]
    many = build([helper.make_node("Relu", [one], [other]) for one, other in pairwise(names)], {})
    assert [limits_of(0, count).seconds for count in (1, 10_000)] == [Limits().seconds, Limits().seconds + 100]
    assert limits_for(saved(many, tmp_path)).seconds >= Limits().seconds + 100, "before it is known how many there are"
    assert limits_for(tmp_path / "absent.onnx") == Limits()


# what ends in a sentence


def test_integer_division_that_traps(tmp_path: Path) -> None:
    least, minus = np.array([np.iinfo(np.int64).min]), np.array([-1])
    nodes = [
        helper.make_node("Div", ["least", "minus"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "number"], ["y"]),
    ]
    path = saved(build(nodes, {"least": least, "minus": minus}), tmp_path)
    with pytest.raises(ModelFileError, match=r"is refused: running it in ONNX Runtime ended the process .*SIGFPE"):
        load_model(path)


@pytest.mark.slow  # half a minute, until it is given up
def test_a_loop_without_end(tmp_path: Path) -> None:
    body = onnx.parser.parse_graph("body (int64 i, bool c, float[N,3,8,8] a) => (bool d, float[N,3,8,8] b) "
                                   "{ d = Identity (c) b = Abs (a) }")  # fmt: skip
    nodes = [helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)]
    path = saved(build(nodes, {"turns": np.array(2**62)}, output=["batch", 3, 8, 8]), tmp_path)
    with pytest.raises(ModelFileError, match="running it in ONNX Runtime comes to no end"):
        load_model(path)


@pytest.mark.parametrize(
    ("operator", "attributes"), [("Expand", {}), ("Tile", {}), ("ConstantOfShape", {}), ("Range", {})]
)
def test_sizes_beyond_all_bounds(tmp_path: Path, operator: str, attributes: dict[str, Any]) -> None:
    huge = np.array([2**20, 2**10, 2**3], np.int64)
    weights: dict[str, Any] = {"huge": huge, "one": np.ones((1, 1, 1), np.float32)}
    arguments = {"Expand": ["one", "huge"], "Tile": ["one", "huge"], "ConstantOfShape": ["huge"]}
    if operator == "Range":
        weights |= {name: np.array(number, np.float32) for name, number in (("a", 0), ("b", 2**33), ("c", 1))}
        arguments["Range"] = ["a", "b", "c"]
    nodes = [
        helper.make_node(operator, arguments[operator], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["most"], keepdims=0),
        helper.make_node("Add", ["x", "most"], ["y"]),
    ]
    with pytest.raises(ModelFileError, match=r"ONNX Runtime"):
        load_model(saved(build(nodes, weights), tmp_path))


@pytest.mark.parametrize("shape", [(2**40, 3, 96, 96), (1, 3, 2**20, 2**20), (2**62, 2**62, 1, 1)])
def test_inputs_beyond_all_bounds(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape=shape), tmp_path)
    with pytest.raises(ShapeError, match=rf"the input 'x' \({'×'.join(map(str, shape))}\), and up to 134,217,728 are"):
        load_model(path)


def test_functions_that_grow_level_by_level(tmp_path: Path) -> None:
    proto = build([helper.make_node("F8", ["x"], ["y"], domain="local")], {})
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    proto.opset_import.append(opsets[1])
    for level in range(1, 9):
        kind, domain = ("Abs", "") if level == 1 else (f"F{level - 1}", "local")
        names = ["a", *(f"t{place}" for place in range(9)), "b"]
        body = [helper.make_node(kind, [old], [new], domain=domain) for old, new in pairwise(names)]
        proto.functions.append(helper.make_function("local", f"F{level}", ["a"], ["b"], body, opsets))
    path = saved(proto, tmp_path)
    for reader in (load_model, read_model):
        with pytest.raises(ModelFileError, match="comes to 100,000,000 nodes once its functions are inlined"):
            reader(path)


def test_a_function_that_calls_itself(tmp_path: Path) -> None:
    path = saved(with_function("Round", [helper.make_node("Round", ["a"], ["b"], domain="local")]), tmp_path)
    with pytest.raises(ModelFileError, match="its function 'Round' calls itself"):
        read_model(path)


def test_what_does_not_fit_at_run_time(tmp_path: Path) -> None:
    proto = conv_net()
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 3))
    with pytest.raises(ModelFileError, match=r"ONNX Runtime does not run .*model.onnx: .*[Cc]hannels.*export it again|"
                       r"ONNX Runtime does not run .*model.onnx"):  # fmt: skip
        load_model(saved(proto, tmp_path))


@pytest.mark.parametrize("number", [9e29, -9e29])
def test_what_computes_no_numbers(tmp_path: Path, number: float) -> None:
    """Each weight is one that a layer may have; two layers of them are too much."""
    proto = conv_net()
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "g"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, number, np.float32), tensor.name))
    with pytest.raises(ModelFileError, match="computes NaN or infinity at its output 'y'"):
        load_model(saved(proto, tmp_path))


@pytest.mark.parametrize("attributes", [{}, {"value_float": 1.0, "value_int": 1}])
def test_a_constant_of_no_value_or_two(tmp_path: Path, attributes: dict[str, Any]) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **attributes), helper.make_node("Relu", ["x"], ["y"])]
    for reader in (load_model, read_model):
        with pytest.raises(ModelFileError, match=r"the Constant 'c' has (no|2) values instead of one"):
            reader(saved(build(nodes, {}), tmp_path))


def test_a_flag_that_is_neither_0_nor_1(tmp_path: Path) -> None:
    path = saved(build([helper.make_node("ReduceMean", ["x"], ["y"], name="mean", keepdims=-2)], {}), tmp_path)
    with pytest.raises(ModelFileError, match="ReduceMean 'mean' has keepdims -2, which is 0 or 1"):
        load_model(path)


def test_text_in_external_data(tmp_path: Path) -> None:
    proto = conv_net()
    tensor = TensorProto(name="words", data_type=TensorProto.STRING, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="words.bin")
    (tmp_path / "words.bin").write_bytes(b"words")
    proto.graph.initializer.append(tensor)
    with pytest.raises(ModelFileError, match="'words' should hold text"):
        read_model(saved(proto, tmp_path))


@pytest.mark.parametrize("reader", [load_model, read_model])
def test_links_that_go_round_and_names_too_long(tmp_path: Path, reader: Any) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for location in ("loop", "x" * 5000):
        proto = conv_net()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        with pytest.raises(ModelFileError, match=r"lies in a file that cannot be opened|is missing"):
            reader(saved(proto, tmp_path))


# what is valid, and read as ONNX Runtime reads it


def test_the_default_domain_by_its_other_name(tmp_path: Path) -> None:
    proto = conv_net()
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = "ai.onnx"
    path = saved(proto, tmp_path)
    assert_same_function(path, load_model(path), 3, 8, 8)
    assert {node.domain for node in read_model(path).graph} == {""}


def test_a_function_that_is_called_as_an_operator_is_that_operator(tmp_path: Path) -> None:
    """ONNX Runtime computes Relu, whatever the body says."""
    path = saved(with_function("Relu", [helper.make_node("Neg", ["a"], ["b"])], domain=""), tmp_path)
    x = noise(2, 3, 8, 8)
    np.testing.assert_array_equal(run(load_model(path), x), np.maximum(x, 0))
    assert [node.op_type for node in read_model(path, inferred=True).graph] == ["Relu"]


def test_a_constant_of_a_function_whose_data_lies_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the current folder, which holds a file of that name, too."""
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "two.bin").write_bytes(np.array(2, np.float32).tobytes())
    (elsewhere / "two.bin").write_bytes(np.array(7, np.float32).tobytes())
    tensor = TensorProto(name="two", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="two.bin")
    body = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Mul", ["a", "c"], ["b"])]
    path = saved(with_function("Twice", body), folder)
    monkeypatch.chdir(elsewhere)
    model = read_model(path, inferred=True)
    constants = [node.attributes["value"].as_tensor() for node in model.graph if node.op_type == "Constant"]
    assert [float(constant.numpy()) for constant in constants] == [2.0]


@pytest.mark.parametrize("as_constant", [False, True])
def test_sparse_tensors(tmp_path: Path, as_constant: bool) -> None:
    dense = np.zeros((3, 5), np.float32)
    dense[1, 2], dense[2, 0] = 3.0, -1.0
    values, places = np.array([3.0, -1.0], np.float32), np.array([7, 10], np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "w"), numpy_helper.from_array(places, "places"), [3, 5]
    )
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if as_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    proto = build(nodes, {}, shape=("batch", 3), output=["batch", 5])
    if not as_constant:
        proto.graph.sparse_initializer.append(sparse)
    path, x = saved(proto, tmp_path), noise(4, 3)
    np.testing.assert_allclose(run(load_model(path), x), x @ dense, rtol=1e-5)
    assert len(read_model(path).graph) == len(nodes)


def test_false_shapes_of_inner_values(tmp_path: Path) -> None:
    """ONNX Runtime does not mind them."""
    proto = conv_net()
    proto.graph.value_info.append(helper.make_tensor_value_info("relu_y", TensorProto.FLOAT, [1, 7, 8, 8]))
    path = saved(proto, tmp_path)
    (relu,) = (node for node in read_model(path, inferred=True).graph if node.op_type == "Relu")
    assert [size if isinstance(size, int) else None for size in relu.outputs[0].shape or ()] == [None, 5, 8, 8]
    assert_same_function(path, load_model(path), 3, 8, 8)


# what everything is held against


def test_the_file_itself_is_what_runs(tmp_path: Path) -> None:
    path = saved(conv_net(), tmp_path)
    found = opened(path)
    assert (found.file, found.reference.own, found.reference.batch) == (path, True, None)
    found.model.graph.node("gemm").attributes["alpha"] = ir.AttrFloat32("alpha", 2.0)  # whatever we make of it
    x = noise(3, 3, 8, 8)
    np.testing.assert_allclose(Session(path, original=found).run(x)[0], run(path, x), rtol=1e-6)


def test_a_file_of_float16_runs_as_such(tmp_path: Path) -> None:
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(3, 5).astype(np.float16)})
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    shape = helper.make_tensor_type_proto(1, ["batch", 3]).tensor_type.shape
    proto.graph.input[0].type.tensor_type.shape.CopyFrom(shape)
    path, x = saved(proto, tmp_path), noise(4, 3)
    (output,) = Session(path, original=opened(path)).run(x)
    assert output.dtype == np.float32
    np.testing.assert_array_equal(output, run(path, x.astype(np.float16)).astype(np.float32))


def test_a_batch_that_is_declared_free_and_is_not(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])]
    weights = {"shape": np.array([2, 192]), "w": weight(192, 4)}
    path = saved(build(nodes, weights, output=[None, 4]), tmp_path)
    found = opened(path)
    assert found.reference.batch == 2
    x = noise(3, 3, 8, 8)
    (output,) = Session(path, original=found).run(x[:2])
    np.testing.assert_allclose(output, run(path, x[:2]), rtol=1e-6)


def test_a_class_is_compared_by_the_scores_in_front_of_it_in_the_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0),
    ]
    proto = build(nodes, {"w": weight(3, 5)}, shape=("batch", 3), output=["batch"])
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    path, x = saved(proto, tmp_path), noise(4, 3)
    session = Session(path, original=opened(path))
    scores, classes = session.run_with_answers(x, session.answer)
    np.testing.assert_allclose(scores[0], x @ weight(3, 5), rtol=1e-5)
    np.testing.assert_array_equal(classes, run(path, x))


def test_what_onnx_runtime_refuses_for_its_names_alone_runs_as_it_was_read(tmp_path: Path) -> None:
    proto = conv_net()
    for node in proto.graph.node:
        node.name = "same"
    found = opened(saved(proto, tmp_path))
    assert not found.reference.own
    assert "same" in found.reference.why


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    path = saved(conv_net(), tmp_path)
    load_model(path)
    read_model(path)
    with Opening(path):
        assert len(list(scratch.iterdir())) == 1
    assert list(scratch.iterdir()) == []


def test_what_shape_inference_refuses_is_refused_at_once(tmp_path: Path) -> None:
    """ONNX Runtime does not look into a body that never runs."""
    body = onnx.parser.parse_graph(
        "body (int64 i, bool c, float[N,3,8,8] a) => (bool d, float[N,3,8,8] b) "
        "{ d = Identity (c) b = Conv <pads = [9223372036854775807, 1, 1, 1]> (a, w) }"
    )
    nodes = [helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)]
    weights = {"turns": np.array(0), "w": np.ones((3, 3, 3, 3), np.float32)}
    path = saved(build(nodes, weights, output=["batch", 3, 8, 8]), tmp_path)
    with pytest.raises(ModelFileError, match=r"refused by ONNX's shape inference: .*overflow"):
        load_model(path)
