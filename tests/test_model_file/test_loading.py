"""Every opset and exporter habit that is read."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

import onnxdfq
from onnxdfq.errors import (
    ModelFileError,
    ShapeError,
)
from onnxdfq.model_file import (
    convert,
    inputs,
    load_model,
    main_input,
    save_model,
)
from onnxdfq.model_file.loading import prepare_model, read_any_model, read_float_model

from ..slow import all_but
from .conftest import assert_same_function, build, conv_net, noise, old_net, run, saved, weight


@pytest.mark.parametrize("opset", range(7, 14))
def test_old_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    path = saved(old_net(opset), tmp_path)
    model = load_model(path)
    assert model.opset_imports[""] == 21
    assert model.ir_version == 10
    assert [spec.name for spec in inputs(model)] == ["x"]
    assert "BatchNormalization" in [node.op_type for node in model.graph]
    assert_same_function(path, model, 3, 8, 8)


OLD_RESIZES = [
    (7, helper.make_node("Upsample", ["x"], ["y"], mode="linear", scales=[1.0, 1.0, 2.0, 2.0])),
    (9, helper.make_node("Upsample", ["x", "scales"], ["y"], mode="linear")),
    (10, helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear")),
    (10, helper.make_node("Resize", ["x", "thirds"], ["y"], mode="nearest")),
]


@pytest.mark.parametrize(("opset", "node"), OLD_RESIZES)
def test_old_resizes_keep_their_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opset: int, node: onnx.NodeProto
) -> None:
    """onnx's converter drops the rule by which pixels were placed before opset 11."""
    scales = {"scales": np.array([1, 1, 2, 2], np.float32), "thirds": np.array([1, 1, 1.75, 1.75], np.float32)}
    path = saved(build([node], {name: scales[name] for name in node.input[1:]}, opset=opset), tmp_path)
    assert_same_function(path, load_model(path), 3, 8, 8)
    monkeypatch.setattr(convert, "_keep_old_resize", lambda _: None)
    with pytest.raises(
        ModelFileError, match=r"computes something else after conversion from opset \d+ to 21; export it"
    ):
        prepare_model(read_float_model(path), path)


@pytest.mark.parametrize(("opset", "ir_version"), [(21, 10), (22, 10), (23, 11), (24, 12), (25, 13)])
def test_new_opsets_are_kept(tmp_path: Path, opset: int, ir_version: int) -> None:
    path = saved(conv_net(opset=opset), tmp_path)
    model = load_model(path)
    assert (model.opset_imports[""], model.ir_version) == (opset, ir_version)
    assert_same_function(path, model, 3, 8, 8)


@pytest.mark.parametrize("opset", [6, 26])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ModelFileError, match=f"has opset {opset}, and opset 7 to 25 is read"):
        load_model(saved(conv_net(opset=opset), tmp_path))


REAL = [
    ("convmixer_cifar10", 17, 1),
    ("fastestdet_coco", 70, 2),  # declared free, and yet it runs at its traced batch of 2 only
    ("mobilenetv1_vww", 27, 1),
    ("resnet20_cifar10jpeg", 19, 1),
    ("resnet56_cifar10", 55, 1),
    ("resnet8_cifar10", 7, 1),
    ("vit_cifar10", 0, 1),
]


@pytest.mark.parametrize(("name", "batch_norms", "runs_at"), all_but(REAL, [REAL[2], REAL[5]]))
def test_real_models(shared_data: Path, tmp_path: Path, name: str, batch_norms: int, runs_at: int) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    before = path.read_bytes()
    model = load_model(path)
    operators = [node.op_type for node in model.graph]
    assert operators.count("BatchNormalization") == batch_norms
    assert not {"Constant", "Identity", "Dropout"} & set(operators)
    assert all(value.shape is not None for node in model.graph for value in node.outputs)
    spec = main_input(model)
    assert spec.shape[0] is None
    x = noise(3 * runs_at, *(size or 0 for size in spec.shape[1:]))
    expected = np.concatenate([run(path, x[at : at + runs_at]) for at in range(0, len(x), runs_at)])
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(run(model, x[:1]), expected[:1], atol=1e-5 * scale, rtol=1e-4)
    np.testing.assert_allclose(run(model, x[:3]), expected[:3], atol=1e-5 * scale, rtol=1e-4)
    known = {output for node in onnx.load(path).graph.node for output in node.output}
    convolutions = [node.outputs[0].name for node in model.graph if node.op_type in ("Conv", "BatchNormalization")]
    assert set(convolutions) <= known, "names of what remains are the file's"
    save_model(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x[:3]), run(model, x[:3]))
    assert path.read_bytes() == before


def test_loading_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    path = saved(old_net(9), tmp_path)
    for name in ("a.onnx", "b.onnx"):
        save_model(load_model(path), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_metadata_survives_conversion_and_simplification(tmp_path: Path) -> None:
    proto = conv_net(opset=17)
    helper.set_model_props(proto, {"dfq.norm": "imagenet"})
    proto.graph.node[1].metadata_props.add(key="layer", value="stem")
    proto.producer_name = "somebody"
    model = load_model(saved(proto, tmp_path))
    assert model.metadata_props["dfq.norm"] == "imagenet"
    assert {node.name: dict(node.metadata_props) for node in model.graph}["bn"] == {"layer": "stem"}
    assert model.producer_name == "somebody"
    assert [node.name for node in model.graph] == ["conv", "bn", "relu", "pool", "flat", "gemm"]


def test_initializers_among_the_inputs_are_no_inputs(tmp_path: Path) -> None:
    proto = conv_net()
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model = load_model(saved(proto, tmp_path))
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_equal_weights_stay_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "w2"], ["y"], name="two"),
    ]
    path = saved(build(nodes, {"w1": weight(3, 3, 1, 1), "w2": weight(3, 3, 1, 1)}), tmp_path)
    assert {"w1", "w2"} <= set(load_model(path).graph.initializers)


def test_projections_of_an_attention_stay_apart(tmp_path: Path) -> None:
    """As a vision transformer has them, behind a normalization: each with a range of its own, and a bias that it takes
    in."""
    nodes = [helper.make_node("LayerNormalization", ["x", "scale"], ["n"])]
    weights = {"scale": weight(8), "heads": np.array([0, 5, 2, 4])}
    for name in ("q", "k", "v"):
        nodes += [
            helper.make_node("MatMul", ["n", f"w{name}"], [f"product_{name}"]),
            helper.make_node("Add", [f"product_{name}", f"b{name}"], [f"sum_{name}"]),
            helper.make_node("Reshape", [f"sum_{name}", "heads"], [f"heads_{name}"]),
            helper.make_node("Transpose", [f"heads_{name}"], [name], perm=[0, 2, 1, 3]),
        ]
        weights |= {f"w{name}": weight(8, 8), f"b{name}": weight(8)}
    nodes += [
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "turned"], ["s"]),
        helper.make_node("Softmax", ["s"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    path = saved(build(nodes, weights, shape=("N", 5, 8), output=("N", 2, 5, 4)), tmp_path)
    found = [node.op_type for node in load_model(path).graph]
    assert (found.count("Gemm"), found.count("Add"), found.count("Split")) == (3, 0, 0)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_a_baked_batch_is_freed(tmp_path: Path, batch: int | str) -> None:
    """ShuffleNet's shuffle and a flatten as torch traces them, with the batch as a number in every target."""
    size = batch if isinstance(batch, int) else 2
    nodes = [
        helper.make_node("Reshape", ["x", "to_pairs"], ["pairs"]),  # (B, 4, 8, 8) to (2B, 2, 64)
        helper.make_node("Transpose", ["pairs"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["turned", "to_halves"], ["halves"]),  # to (2, B, 2, 8, 8)
        helper.make_node("Gather", ["halves", "first"], ["half"], axis=0),  # (B, 2, 8, 8)
        helper.make_node("Resize", ["half", "", "", "sizes"], ["large"], mode="nearest"),
        helper.make_node("Reshape", ["large", "to_flat"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g"], ["y"]),
    ]
    constants = {
        "to_pairs": np.array([2 * size, 2, 64]),
        "to_halves": np.array([2, size, 2, 8, 8]),
        "first": np.array(1).reshape(()),
        "sizes": np.array([size, 2, 16, 16]),
        "to_flat": np.array([size, -1]),
    }
    proto = build(nodes, {"g": weight(512, 3), **constants}, shape=(batch, 4, 8, 8), output=(batch, 3))
    path = saved(proto, tmp_path)
    model = load_model(path)
    assert main_input(model).shape == (None, 4, 8, 8)
    assert model.graph.outputs[0].shape is not None
    assert model.graph.outputs[0].shape[1] == 3
    x = noise(4, 4, 8, 8)
    expected = np.concatenate([run(path, x[at : at + size]) for at in range(0, 4, size)])
    for rows in (1, 3, 4):
        np.testing.assert_allclose(run(model, x[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)
    save_model(model, tmp_path / "out.onnx")


@pytest.mark.parametrize("height", [16, 11])  # twice the old one, and a factor that float32 does not hold
def test_a_resize_to_sizes_of_numbers_leaves_the_batch_free(tmp_path: Path, height: int) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "", "sizes"], ["large"], mode="linear"),
        helper.make_node("Conv", ["large", "w"], ["y"]),
    ]
    weights = {"sizes": np.array([1, 3, height, 12]), "w": weight(2, 3, 1, 1)}
    proto = build(nodes, weights, shape=(1, 3, 8, 8), output=(1, 2, height, 12))
    path = saved(proto, tmp_path)
    model = load_model(path)
    assert main_input(model).shape == (None, 3, 8, 8)
    x = noise(3, 3, 8, 8)
    expected = np.concatenate([run(path, x[at : at + 1]) for at in range(3)])
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_a_batch_that_cannot_be_freed_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Concat", ["a", "token"], ["y"], axis=1)]
    path = saved(build(nodes, {"w": weight(2, 3, 1, 1), "token": weight(1, 1, 8, 8)}, shape=(1, 3, 8, 8)), tmp_path)
    model = load_model(path)
    assert main_input(model).shape == (1, 3, 8, 8)
    np.testing.assert_allclose(run(model, noise(1, 3, 8, 8)), run(path, noise(1, 3, 8, 8)), rtol=1e-5)


def test_a_computed_target_becomes_a_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Concat", ["batch", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Gemm", ["flat", "g"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([-1]), "g": weight(192, 2)}
    path = saved(build(nodes, weights), tmp_path)
    model = load_model(path)
    assert [node.op_type for node in model.graph] == ["Reshape", "Gemm"]
    assert_same_function(path, model, 3, 8, 8)


def test_a_scale_of_attention_becomes_a_constant(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("CastLike", ["width", "x"], ["float_width"]),
        helper.make_node("Sqrt", ["float_width"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["y"]),
    ]
    path = saved(build(nodes, {"width": np.array(16)}), tmp_path)
    model = load_model(path)
    assert [node.op_type for node in model.graph] == ["Div"]
    assert_same_function(path, model, 3, 8, 8)


def with_function(opset: int) -> onnx.ModelProto:
    """A network whose Relu is a function of its own, of this opset."""
    proto = conv_net()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    proto.functions.append(helper.make_function("pkg", "act", ["a"], ["b"], body, [helper.make_opsetid("", opset)]))
    proto.opset_import.append(helper.make_opsetid("pkg", 1))
    proto.graph.node[2].CopyFrom(helper.make_node("act", ["bn_y"], ["relu_y"], name="relu", domain="pkg"))
    return proto


def test_functions_are_inlined(tmp_path: Path) -> None:
    path = saved(with_function(17), tmp_path)
    model = load_model(path)
    assert not model.functions
    assert {node.domain for node in model.graph} == {""}
    assert_same_function(path, model, 3, 8, 8)


def test_a_function_of_another_opset_is_refused(tmp_path: Path) -> None:
    path = saved(with_function(15), tmp_path)
    for read in (load_model, onnxdfq.lint):
        with pytest.raises(ModelFileError, match="a function cannot take the place of its call: Opset mismatch"):
            read(path)


@pytest.mark.parametrize("size", [7, 2**63 - 1])
def test_a_stale_shape_inside_does_not_hinder_the_conversion(tmp_path: Path, size: int) -> None:
    proto = conv_net(opset=13)
    stale = helper.make_tensor_value_info("relu_y", onnx.TensorProto.FLOAT, ["batch", size, 8, 8])
    proto.graph.value_info.append(stale)
    path = saved(proto, tmp_path)
    assert_same_function(path, load_model(path), 3, 8, 8)


def test_a_layer_that_computes_on_no_numbers_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Tile", ["x", "none"], ["tiled"]),
        helper.make_node("Conv", ["tiled", "w"], ["y"], name="conv"),
    ]
    proto = build(nodes, {"none": np.array([0, 1, 1, 1]), "w": weight(4, 3, 3, 3)}, opset=21)
    with pytest.raises(ShapeError, match=r"Conv 'conv' computes on 'tiled', which holds no numbers \(0×3×8×8\)"):
        load_model(saved(proto, tmp_path))


OUT_OF_ORDER = """<ir_version: 10, opset_import: ["" : 21]> net (float[N,3] x, bool c) => (float[N,3] y) {
    y = Add (b, r)
    r = Relu (x)
    b = If (c) <then_branch = yes () => (float[N,3] p) { s = Sigmoid (r) p = Neg (s) },
                else_branch = no () => (float[N,3] q) { q = Identity (r) }>
}"""


def test_nodes_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    """ONNX Runtime loads them, and quantizers write them (Quark)."""
    proto = onnx.parser.parse_model(OUT_OF_ORDER)
    onnx.save(proto, tmp_path / "m.onnx")
    model = read_any_model(tmp_path / "m.onnx")
    assert [node.op_type for node in model.graph] == ["Relu", "If", "Add"]
    onnx.checker.check_model(ir.to_proto(model))
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        written = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]
        np.testing.assert_array_equal(written, onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, feeds)[0])


def test_nodes_that_read_in_a_circle_are_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(OUT_OF_ORDER)
    proto.graph.node[1].input[0] = "y"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="must be topologically sorted"):
        read_any_model(tmp_path / "m.onnx")
