"""The way in and out: every opset and exporter habit that is read, every bad file refused in one sentence."""

import errno
import hashlib
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.errors import (
    AlreadyQuantized,
    DfqError,
    ModelFileError,
    OutputError,
    ShapeError,
    UnsupportedOperator,
)
from onnxdfq.model_file import (
    atomic_write,
    constant_input,
    convert,
    image_input,
    inputs,
    load_model,
    model_hash,
    parse_input_shapes,
    read_model,
    save_model,
    through_proto,
    writing,
)
from onnxdfq.model_file import loading as loading_module

IR_VERSION = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 17: 8, 21: 10, 25: 13}


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int | str | None] | None = ("batch", 3, 8, 8),
    output: Sequence[int | str | None] | None = None,
    opset: int = 17,
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), *more_inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION.get(opset, 8))


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def batch_norm(name: str, x: str, y: str, channels: int, **attributes: Any) -> tuple[onnx.NodeProto, dict[str, Any]]:
    names = [f"{name}.{part}" for part in ("scale", "bias", "mean", "var")]
    values = [weight(channels, seed=seed) for seed in range(1, 5)]
    values[3] = np.abs(values[3]) + 0.5
    node = helper.make_node("BatchNormalization", [x, *names], [y], name=name, **attributes)
    return node, dict(zip(names, values, strict=True))


def conv_net(**changes: Any) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, mean, Gemm: y (batch, 4)."""
    norm, parameters = batch_norm("bn", "conv_y", "bn_y", 5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv_y"], name="conv", pads=[1, 1, 1, 1]),
        norm,
        helper.make_node("Relu", ["bn_y"], ["relu_y"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu_y"], ["pool_y"], name="pool"),
        helper.make_node("Flatten", ["pool_y"], ["flat_y"], name="flat"),
        helper.make_node("Gemm", ["flat_y", "g"], ["y"], name="gemm"),
    ]
    return build(nodes, {"w": weight(5, 3, 3, 3), "g": weight(5, 4), **parameters}, output=["batch", 4], **changes)


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def run(model: onnx.ModelProto | ir.Model | Path, x: NDArray[np.float32], **more: NDArray[Any]) -> NDArray[np.float32]:
    source: Any = model
    if isinstance(model, ir.Model):
        source = ir.to_proto(model).SerializeToString()
    elif isinstance(model, onnx.ModelProto):
        source = model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x, **more})[0]
    return result


def noise(batch: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)


def assert_same_function(path: Path, model: ir.Model, *shape: int) -> None:
    """Batch 1 and 3 of the loaded model against the file; rows one by one, for a file whose batch is fixed at 1."""
    for batch in (1, 3):
        x = noise(batch, *shape)
        expected = np.concatenate([run(path, row[np.newaxis]) for row in x])
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def old_net(opset: int) -> onnx.ModelProto:
    """What exporters of their time wrote, with everything that changed between opset 7 and 13."""
    norm, parameters = batch_norm("bn", "up", "bn_y", 3, **({"spatial": 1} if opset < 9 else {}))
    weights = {"k": weight(4, 3, 3, 3), **parameters}
    float_input = [helper.make_node("Relu", ["clip"], ["relu"])]
    if opset < 9:
        up = [helper.make_node("Upsample", ["x"], ["up"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])]
    elif opset < 10:
        up = [helper.make_node("Upsample", ["x", "scales"], ["up"], mode="nearest")]
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    elif opset < 11:
        up = [helper.make_node("Resize", ["x", "scales"], ["up"], mode="nearest")]
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    else:
        roi = "roi" if opset < 13 else ""
        weights |= {"roi": np.zeros(0, np.float32)} if roi else {}
        up = [helper.make_node("Resize", ["x", roi, "scales"], ["up"], coordinate_transformation_mode="asymmetric",
                               nearest_mode="floor")]  # fmt: skip
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    if opset < 11:
        clip = [helper.make_node("Clip", ["conv"], ["clip"], min=-1.0, max=1.0)]
    else:
        clip = [helper.make_node("Clip", ["conv", "low", "high"], ["clip"])]
        weights |= {"low": np.float32(-1).reshape(()), "high": np.float32(1).reshape(())}
    if opset < 11:
        pad = [helper.make_node("Pad", ["relu"], ["padded"], mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)]
    else:
        pad = [helper.make_node("Pad", ["relu", "pads", "half"], ["padded"])]
        weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "half": np.float32(0.5).reshape(())}
    if opset < 10:
        cut = [helper.make_node("Slice", ["padded"], ["cut"], axes=[2, 3], starts=[0, 0], ends=[9, 9])]
    else:
        cut = [helper.make_node("Slice", ["padded", "starts", "ends", "axes"], ["cut"])]
        weights |= {"starts": np.array([0, 0]), "ends": np.array([9, 9]), "axes": np.array([2, 3])}
    drop = [helper.make_node("Dropout", ["cut"], ["drop", "mask"] if opset < 12 else ["drop"])]
    if opset < 13:
        tail = [
            helper.make_node("ReduceSum", ["drop"], ["sum"], axes=[2], keepdims=0),
            helper.make_node("Unsqueeze", ["sum"], ["wide"], axes=[2]),
            helper.make_node("Squeeze", ["wide"], ["narrow"], axes=[2]),
        ]
    else:
        weights["two"] = np.array([2])
        tail = [
            helper.make_node("ReduceSum", ["drop", "two"], ["sum"], keepdims=0),
            helper.make_node("Unsqueeze", ["sum", "two"], ["wide"]),
            helper.make_node("Squeeze", ["wide", "two"], ["narrow"]),
        ]
    tail += [
        helper.make_node("Flatten", ["narrow"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"], axis=1),
    ]
    nodes = [
        *up,
        norm,
        helper.make_node("Conv", ["bn_y", "k"], ["conv"]),
        *clip,
        *float_input,
        *pad,
        *cut,
        *drop,
        *tail,
    ]
    model = build(nodes, weights, opset=opset, shape=("N", 3, 8, 8), output=("N", None))
    if opset < 9:  # IR 3 wants every initializer among the inputs
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


# --- what is read ---------------------------------------------------------------------------------------------------


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
        load_model(path)


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


@pytest.mark.parametrize(("name", "batch_norms", "runs_at"), REAL)
def test_real_models(shared_data: Path, tmp_path: Path, name: str, batch_norms: int, runs_at: int) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    before = path.read_bytes()
    model = load_model(path)
    operators = [node.op_type for node in model.graph]
    assert operators.count("BatchNormalization") == batch_norms
    assert not {"Constant", "Identity", "Dropout"} & set(operators)
    assert all(value.shape is not None for node in model.graph for value in node.outputs)
    spec = image_input(model)
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
    assert model.metadata_props == {"dfq.norm": "imagenet"}
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
    assert image_input(model).shape == (None, 4, 8, 8)
    assert model.graph.outputs[0].shape is not None
    assert model.graph.outputs[0].shape[1] == 3
    x = noise(4, 4, 8, 8)
    expected = np.concatenate([run(path, x[at : at + size]) for at in range(0, 4, size)])
    for rows in (1, 3, 4):
        np.testing.assert_allclose(run(model, x[:rows]), expected[:rows], rtol=1e-4, atol=1e-5)
    save_model(model, tmp_path / "out.onnx")


def test_a_batch_that_cannot_be_freed_stays(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Concat", ["a", "token"], ["y"], axis=1)]
    path = saved(build(nodes, {"w": weight(2, 3, 1, 1), "token": weight(1, 1, 8, 8)}, shape=(1, 3, 8, 8)), tmp_path)
    model = load_model(path)
    assert image_input(model).shape == (1, 3, 8, 8)
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


def test_functions_are_inlined(tmp_path: Path) -> None:
    proto = conv_net()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opset = [helper.make_opsetid("", 17)]
    proto.functions.append(helper.make_function("pkg", "act", ["a"], ["b"], body, opset))
    proto.opset_import.append(helper.make_opsetid("pkg", 1))
    proto.graph.node[2].CopyFrom(helper.make_node("act", ["bn_y"], ["relu_y"], name="relu", domain="pkg"))
    path = saved(proto, tmp_path)
    model = load_model(path)
    assert not model.functions
    assert {node.domain for node in model.graph} == {""}
    assert_same_function(path, model, 3, 8, 8)


# --- external data --------------------------------------------------------------------------------------------------


def save_external(proto: onnx.ModelProto, folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True)
    return path


def move_location(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read(tmp_path: Path) -> None:
    inline = saved(conv_net(), tmp_path, "inline.onnx")
    path = save_external(conv_net(), tmp_path)
    model = load_model(path)
    (tmp_path / "weights.bin").unlink()  # a model below 2 GB no longer needs it
    x = noise(2, 3, 8, 8)
    np.testing.assert_array_equal(run(model, x), run(load_model(inline), x))


def test_large_models_are_read_lazily_and_not_simplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading_module, "INLINE_LIMIT", 100)
    monkeypatch.setattr(writing, "INLINE_LIMIT", 100)
    for module in (loading_module, through_proto):
        monkeypatch.setattr(module, "CARRIED_INLINE", 200)
    path = save_external(conv_net(opset=13), tmp_path)
    model = load_model(path)
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    assert model.opset_imports[""] == 21
    out = tmp_path / "out.onnx"
    save_model(model, out)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.onnx", "out.onnx", "out.onnx.data", "weights.bin",
    ]  # fmt: skip
    x = noise(2, 3, 8, 8)
    np.testing.assert_allclose(run(out, x), run(path, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_three_gigabytes(tmp_path: Path) -> None:
    """A file of zeros with holes, so that only the writing takes the disk's time."""
    size, shape = 27_500**2 * 4, (27_500, 27_500)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    proto = build([helper.make_node("MatMul", ["x", "w"], ["y"])], {}, shape=("batch", shape[0]), opset=13)
    proto.graph.initializer.append(tensor)
    path = saved(proto, tmp_path)
    with (tmp_path / "weights.bin").open("wb") as stream:
        stream.truncate(size)
    model = load_model(path)
    assert model.opset_imports[""] == 21
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
    save_model(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == size
    assert (tmp_path / "out.onnx").stat().st_size < 10_000
    reread = read_model(tmp_path / "out.onnx")
    assert isinstance(reread.graph.initializers["w"].const_value, ir.ExternalTensor)


def test_external_data_missing(tmp_path: Path) -> None:
    path = save_external(conv_net(), tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"external data of tensor 'w' is missing: there is no file 'weights.bin'"):
        load_model(path)


def test_external_data_too_short(tmp_path: Path) -> None:
    path = save_external(conv_net(), tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 40)
    with pytest.raises(ModelFileError, match=r"should be bytes 0 to 540 of 'weights.bin', which has 40"):
        load_model(path)


@pytest.mark.parametrize("reader", [load_model, read_model, model_hash])
@pytest.mark.parametrize(
    "location", ["../weights.bin", "sub/../../weights.bin", "{absolute}", "C:\\w.bin", "..\\w.bin"]
)
def test_external_data_outside_the_folder(tmp_path: Path, location: str, reader: Any) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    path = save_external(conv_net(), folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    move_location(path, location.format(absolute=tmp_path / "weights.bin"))
    with pytest.raises(ModelFileError, match=r"tensor 'w' lies in .*outside the model's own folder"):
        reader(path)


def test_external_data_behind_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(conv_net(), folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelFileError, match=r"outside the model's own folder"):
        load_model(path)


def test_external_data_in_a_constant_node_is_checked_too(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(weight(3, 1, 1), "c")
    onnx.external_data_helper.set_external_data(tensor, "/etc/hostname")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])]
    with pytest.raises(ModelFileError, match=r"tensor 'c' lies in '/etc/hostname', outside"):
        load_model(saved(build(nodes, {}), tmp_path))


def test_hash_covers_the_external_data(tmp_path: Path) -> None:
    inline = saved(conv_net(), tmp_path, "inline.onnx")
    assert model_hash(inline) == hashlib.sha256(inline.read_bytes()).hexdigest()
    path = save_external(conv_net(), tmp_path)
    first = model_hash(path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert model_hash(path) != first


# --- bad files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [load_model, read_model])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file\n" * 20, "is not an ONNX model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, "is not an ONNX model"),
        (b"PK\x03\x04" + b"\0" * 100, "is not an ONNX model"),
        (b"\x80\x04\x95" + b"\0" * 100, "is not an ONNX model"),
        (b"\x08\x07", "is not an ONNX model"),
    ],
)
def test_not_onnx(tmp_path: Path, reader: Any, content: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        reader(path)


def test_initializers_of_old_files_need_not_be_inputs(tmp_path: Path) -> None:
    proto = build([helper.make_node("PRelu", ["x", "slope"], ["y"])], {"slope": weight(3, 1, 1)}, opset=7)
    assert proto.ir_version == 3
    path = saved(proto, tmp_path)
    assert_same_function(path, load_model(path), 3, 8, 8)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = saved(conv_net(), tmp_path).read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            load_model(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"is cut off: it has [\d,]+ bytes and needs at least [\d,]+"):
        load_model(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such file"):
        load_model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError, match="is not a file"):
        load_model(tmp_path)


def with_weight(proto: onnx.ModelProto, name: str, array: NDArray[Any]) -> onnx.ModelProto:
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != name]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])
    return proto


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize(("name", "shape"), [("w", (5, 3, 3, 3)), ("bn.var", (5,)), ("g", (5, 4))])
def test_weights_that_are_not_finite(
    tmp_path: Path, value: float, word: str, name: str, shape: tuple[int, ...]
) -> None:
    array = weight(*shape)
    array.flat[-1] = value
    with pytest.raises(ModelFileError, match=f"tensor '{name}' holds {word}"):
        load_model(saved(with_weight(conv_net(), name, array), tmp_path))


def test_an_infinite_mask_or_bound_is_fine(tmp_path: Path) -> None:
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["soft"], axis=3),
        helper.make_node("Clip", ["soft", "", "high"], ["y"]),
    ]
    path = saved(build(nodes, {"mask": mask, "high": np.float32(np.inf).reshape(())}), tmp_path)
    assert_same_function(path, load_model(path), 3, 8, 8)


@pytest.mark.parametrize(
    ("operator", "count"), [("QuantizeLinear", 2), ("DynamicQuantizeLinear", 1), ("ConvInteger", 1), ("QLinearConv", 1)]
)
def test_quantized_models_are_refused_and_read(tmp_path: Path, operator: str, count: int) -> None:
    scale = {"s": np.float32(0.1).reshape(()), "z": np.uint8(0).reshape(())}
    back = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="dq")
    nodes = {
        "QuantizeLinear": [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="first"), back],
        "DynamicQuantizeLinear": [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "t", "u"], name="first"),
            helper.make_node("Cast", ["q"], ["y"], to=TensorProto.FLOAT),
        ],
        "ConvInteger": [
            helper.make_node("Cast", ["x"], ["b"], to=TensorProto.UINT8),
            helper.make_node("ConvInteger", ["b", "k"], ["i"], name="first"),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        "QLinearConv": [
            helper.make_node("Cast", ["x"], ["b"], to=TensorProto.UINT8),
            helper.make_node("QLinearConv", ["b", "s", "z", "k", "s", "z", "s", "z"], ["i"], name="first"),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
    }[operator]
    path = saved(build(nodes, {**scale, "k": np.ones((2, 3, 1, 1), np.uint8)}), tmp_path)
    with pytest.raises(
        AlreadyQuantized, match=f"holds {count} such nodes, the first {operator} 'first'; give the float"
    ):
        load_model(path)
    assert operator in [node.op_type for node in read_model(path).graph]


def test_an_operator_that_onnx_lacks(tmp_path: Path) -> None:
    path = saved(build([helper.make_node("Frobnicate", ["x"], ["y"], name="odd")], {}), tmp_path)
    with pytest.raises(UnsupportedOperator, match=r"has no operator Frobnicate \(domain 'ai.onnx'\), which node 'odd'"):
        load_model(path)


def test_an_operator_of_another_domain_is_left_to_the_engine(tmp_path: Path) -> None:
    proto = build(
        [helper.make_node("Odd", ["x"], ["a"], name="odd", domain="com.acme"), helper.make_node("Relu", ["a"], ["y"])],
        {},
    )
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    model = load_model(saved(proto, tmp_path))
    assert [(node.domain, node.op_type) for node in model.graph] == [("com.acme", "Odd"), ("", "Relu")]
    assert model.opset_imports == {"": 21, "com.acme": 1}


def test_an_ill_formed_graph(tmp_path: Path) -> None:
    path = saved(build([helper.make_node("Relu", ["nowhere"], ["y"])], {}), tmp_path)
    with pytest.raises(ModelFileError, match=r"is not a valid ONNX model: .*nowhere"):
        load_model(path)


# --- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            ("batch", 3, "h", "w"),
            r"Input 'x' has unknown sizes: batch×3×h×w; give them with --input-shape x=1,3,224,224",
        ),
        (
            ("batch", 3, None, None),
            r"Input 'x' has unknown sizes: batch×3×\?×\?; give them with --input-shape x=1,3,224",
        ),
        ((1, 3, -1, 8), r"unknown sizes: .*--input-shape x=1,3,224,8"),
        ((1, 3, 0, 8), r"Input 'x' has size 0 on axis 2"),
        ((0, 3, 8, 8), r"Input 'x' has size 0 on axis 0"),
        (None, r"Input 'x' has no shape; give it with --input-shape x=1,3,224,224"),
    ],
)
def test_shapes_that_are_unknown_or_empty(tmp_path: Path, shape: Sequence[Any] | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        load_model(saved(conv_net(shape=shape), tmp_path))


@pytest.mark.parametrize(
    "shape", [("batch", 3, "h", "w"), (None, None, None, None), None, (1, 3, -1, 8), (1, 3, "h", 8)]
)
@pytest.mark.parametrize("given", ["x=1,3,8,8", "1,3,8,8", "5,3,8,8"])
def test_given_shapes(tmp_path: Path, shape: Sequence[Any] | None, given: str) -> None:
    path = saved(conv_net(shape=shape), tmp_path)
    model = load_model(path, input_shape=parse_input_shapes([given]))
    assert image_input(model).shape == (None, 3, 8, 8)
    reference = saved(conv_net(), tmp_path, "reference.onnx")
    assert_same_function(reference, model, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("z=1,3,8,8", r"names the input 'z', which the model lacks; it has 'x'"),
        ("x=1,4,8,8", r"gives 4 for axis 1 of 'x', which the model fixes at 3"),
        ("3,8,8", r"has 3 sizes and the input has 4"),
        ("x=1,3,8,big", r"is not NAME=1,3,224,224 or 1,3,224,224"),
        ("x=1,3,8,0", r"holds a size below 1"),
    ],
)
def test_given_shapes_that_do_not_fit(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        load_model(saved(conv_net(shape=("batch", 3, "h", "w")), tmp_path), input_shape=parse_input_shapes([given]))


def test_several_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["size"], ["float_size"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "float_size"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    more = [
        helper.make_tensor_value_info("size", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["batch", 1]),
    ]
    path = saved(build(nodes, {}, shape=("batch", 3, 8, 8), more_inputs=more), tmp_path)
    # (batch, 1) broadcasts against the last two axes only at batch 1 or 8, so the batch is no batch here.
    model = load_model(path)
    assert image_input(model).name == "x"
    by_name = {spec.name: spec for spec in inputs(model)}
    np.testing.assert_array_equal(constant_input(by_name["size"], 4), np.ones(1, np.int64))
    np.testing.assert_array_equal(constant_input(by_name["shift"], 4), np.zeros((4, 1), np.float32))


def test_a_batch_is_freed_beside_an_input_without_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Cast", ["size"], ["float_size"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["float_size"], ["area"]),
        helper.make_node("Mul", ["flat", "area"], ["y"]),
    ]
    more = [helper.make_tensor_value_info("size", TensorProto.INT64, [2])]
    path = saved(build(nodes, {"target": np.array([1, -1])}, shape=(1, 3, 8, 8), more_inputs=more), tmp_path)
    model = load_model(path)
    assert [spec.shape for spec in inputs(model)] == [(None, 3, 8, 8), (2,)]
    x, size = noise(3, 3, 8, 8), np.array([2, 3])
    np.testing.assert_allclose(run(model, x, size=size), x.reshape(3, 192) * 6, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "shape", "message"),
    [
        ([("other", TensorProto.FLOAT, ["batch", 3, 8, 8])], ("batch", 3, 8, 8), "2 inputs that could take images"),
        ([("other", TensorProto.FLOAT, ["batch", 7])], ("batch", 5), "2 inputs that could take images"),
    ],
)
def test_no_single_image_input(tmp_path: Path, more: Any, shape: Sequence[Any], message: str) -> None:
    infos = [helper.make_tensor_value_info(*info) for info in more]
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape=shape, more_inputs=infos), tmp_path)
    with pytest.raises(ShapeError, match=message):
        image_input(load_model(path))


@pytest.mark.parametrize("shape", [("batch", 5), ("batch", 4, 6)])
def test_inputs_of_lower_rank(tmp_path: Path, shape: Sequence[Any]) -> None:
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape=shape), tmp_path)
    assert image_input(load_model(path)).shape == (None, *shape[1:])


# --- writing --------------------------------------------------------------------------------------------------------


def small(tmp_path: Path) -> ir.Model:
    return load_model(saved(conv_net(), tmp_path, "source.onnx"))


def test_saved_models_carry_shapes(tmp_path: Path) -> None:
    model = small(tmp_path)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None if not value.is_graph_output() else value.shape
    save_model(model, tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx")
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in proto.graph.value_info
    }
    assert shapes["conv_y"] == ["batch", 5, 8, 8]
    assert shapes["pool_y"] == ["batch", 5, 1, 1]


def test_an_invalid_model_is_not_written(tmp_path: Path) -> None:
    model = small(tmp_path)
    model.graph.node("conv").attributes["pads"] = ir.AttrInt64s("pads", [1])
    with pytest.raises(OutputError, match="was not written, because the model is not valid ONNX") as caught:
        save_model(model, tmp_path / "out.onnx")
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


def test_existing_files_are_kept_without_force(tmp_path: Path) -> None:
    model, out = small(tmp_path), tmp_path / "out.onnx"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"exists; .*--force to replace it") as caught:
        save_model(model, out)
    assert caught.value.exit_code == 2
    assert out.read_text() == "mine"
    save_model(model, out, force=True)
    assert onnx.load(out).graph.node


@pytest.mark.parametrize(
    ("target", "message"), [("absent/out.onnx", "does not exist; create it first"), ("folder", "is a folder")]
)
def test_paths_that_cannot_be_written(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message) as caught:
        save_model(small(tmp_path), tmp_path / target, force=True)
    assert caught.value.exit_code == 2


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="is not an ordinary file"), atomic_write(Path(os.devnull), force=True):
        raise AssertionError("the block must not run")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # the superuser writes anywhere

        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"not writable|Permission denied; choose another folder") as caught:
        save_model(small(tmp_path), folder / "out.onnx")
    assert caught.value.exit_code == 2


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(tmp_path)

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full; nothing was written") as caught:
        save_model(model, tmp_path / "out.onnx")
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize("limit", [2**40, 100], ids=["inline", "external"])
def test_a_real_limit_on_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The kernel itself stops the writing half-way."""
    monkeypatch.setattr(writing, "INLINE_LIMIT", limit)
    model = small(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
    try:
        with pytest.raises(OutputError) as caught:
            save_model(model, tmp_path / "out.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "images.npz"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, force=True) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["images.npz"]


def test_a_finished_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with atomic_write(path) as temporary:
        temporary.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_every_refusal_is_one_of_ours(tmp_path: Path) -> None:
    """Flipped bytes anywhere in the file: a model, or a DfqError; never another exception."""
    data = bytearray(saved(conv_net(), tmp_path).read_bytes())
    random = np.random.default_rng(0)
    path = tmp_path / "flipped.onnx"
    refused = 0
    for _ in range(60):
        flipped = bytearray(data)
        for at in random.integers(0, len(data), 3):
            flipped[at] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(flipped)
        try:
            load_model(path)
        except DfqError:
            refused += 1
    assert refused
