"""Every bad file is refused in one sentence, and nothing outside the model's folder is read."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.errors import (
    AlreadyQuantized,
    DfqError,
    ModelFileError,
    UnsupportedOperator,
)
from onnxdfq.model_file import (
    handover,
    load_model,
    read_model,
    save_model,
    saving,
    through_proto,
)
from onnxdfq.model_file import loading as loading_module
from onnxdfq.model_file.handover import hand_over, take_over
from onnxdfq.model_file.loading import prepare_model, read_float_model
from onnxdfq.model_file.untrusted import model_hash, read_proto

from .conftest import (
    assert_same_function,
    build,
    conv_net,
    move_location,
    noise,
    run,
    save_external,
    saved,
    weight,
    with_weight,
)


def test_external_data_is_read(tmp_path: Path) -> None:
    inline = saved(conv_net(), tmp_path, "inline.onnx")
    path = save_external(conv_net(), tmp_path)
    model = load_model(path)
    (tmp_path / "weights.bin").unlink()  # a model below 2 GB no longer needs it
    x = noise(2, 3, 8, 8)
    np.testing.assert_array_equal(run(model, x), run(load_model(inline), x))


def test_large_models_are_read_lazily_and_not_simplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    for module in (loading_module, through_proto, handover):
        monkeypatch.setattr(module, "CARRIED_INLINE", 200)
    path = save_external(conv_net(opset=13), tmp_path)
    between = tmp_path / "between"
    between.mkdir()
    hand_over(prepare_model(read_float_model(path), path), between)
    model = take_over(between, path)
    shutil.rmtree(between)
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
    for size in range(1, len(data), 17):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFileError):
            load_model(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError, match=r"is cut off: it has [\d,]+ bytes and needs at least [\d,]+"):
        load_model(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such file"):
        load_model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError, match="is a folder; give an ordinary file"):
        load_model(tmp_path)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize(("name", "shape"), [("w", (5, 3, 3, 3)), ("bn.var", (5,)), ("g", (5, 4))])
def test_weights_that_are_not_finite(
    tmp_path: Path, value: float, word: str, name: str, shape: tuple[int, ...]
) -> None:
    array = weight(*shape)
    array.flat[-1] = value
    with pytest.raises(ModelFileError, match=f"tensor '{name}' holds {word}"):
        load_model(saved(with_weight(conv_net(), name, array), tmp_path))


def test_weights_whose_sums_are_infinite(tmp_path: Path) -> None:
    proto = onnx.load(saved(conv_net(), tmp_path))
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    array = numpy_helper.to_array(weights["w"]).copy()
    array[1, 2, 0, 0] = -3.4e38
    weights["w"].CopyFrom(numpy_helper.from_array(array, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"tensor 'w' holds 3.4e\+38, with which a layer's sums are infinite"):
        load_model(tmp_path / "m.onnx")


def test_places_on_several_devices_are_dropped(tmp_path: Path) -> None:
    proto = onnx.load(saved(conv_net(), tmp_path))
    proto.graph.node[0].device_configurations.add()
    onnx.save(proto, tmp_path / "m.onnx")
    assert not any(node.device_configurations for node in ir.to_proto(load_model(tmp_path / "m.onnx")).graph.node)


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


def test_an_operator_that_onnx_runtime_lacks_names_the_option_that_brings_it(tmp_path: Path) -> None:
    proto = build(
        [helper.make_node("Odd", ["x"], ["a"], name="odd", domain="com.acme"), helper.make_node("Relu", ["a"], ["y"])],
        {},
    )
    proto.opset_import.append(helper.make_opsetid("com.acme", 1))
    with pytest.raises(ModelFileError, match=r"does not run .*com\.acme:Odd.*--op-library"):
        load_model(saved(proto, tmp_path))


def test_an_ill_formed_graph(tmp_path: Path) -> None:
    path = saved(build([helper.make_node("Relu", ["nowhere"], ["y"])], {}), tmp_path)
    with pytest.raises(ModelFileError, match=r"is not a valid ONNX model: .*nowhere"):
        load_model(path)


@pytest.mark.parametrize("reader", [load_model, read_model])
def test_sizes_that_no_array_has(tmp_path: Path, reader: Any) -> None:
    proto = onnx.load(saved(conv_net(), tmp_path))
    proto.graph.initializer.append(TensorProto(name="roi", data_type=TensorProto.FLOAT, dims=[0, 2**63 - 1]))
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"the tensor 'roi' has the sizes 0 x 9223372036854775807\."):
        reader(tmp_path / "m.onnx")


@pytest.mark.parametrize("reader", [load_model, read_model])
def test_attributes_of_a_function_outside_of_functions(tmp_path: Path, reader: Any) -> None:
    proto = onnx.load(saved(conv_net(), tmp_path))
    proto.graph.node[0].attribute[0].ref_attr_name = "outer"
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="stands for an attribute 'outer' of a function, and lies in none"):
        reader(tmp_path / "m.onnx")


def test_every_refusal_is_one_of_ours(tmp_path: Path) -> None:
    """Flipped bytes anywhere in the file: a model, or a DfqError; never another exception."""
    data = bytearray(saved(conv_net(), tmp_path).read_bytes())
    random = np.random.default_rng(0)
    path = tmp_path / "flipped.onnx"
    refused = 0
    for _ in range(30):
        flipped = bytearray(data)
        for at in random.integers(0, len(data), 3):
            flipped[at] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(flipped)
        try:
            load_model(path)
        except DfqError:
            refused += 1
    assert refused


def places_of_tensors(kind: Descriptor, used: tuple[str, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """Every way from a message to a tensor that takes no field twice, by the schema of onnx itself."""
    for field in kind.fields:
        if field.type != FieldDescriptor.TYPE_MESSAGE or field.full_name in used:
            continue
        if field.message_type is TensorProto.DESCRIPTOR:
            yield (field,)
        else:
            for rest in places_of_tensors(field.message_type, (*used, field.full_name)):
                yield (field, *rest)


def test_external_data_outside_the_folder_is_refused_wherever_the_schema_has_room_for_a_tensor(tmp_path: Path) -> None:
    places = list(places_of_tensors(onnx.ModelProto.DESCRIPTOR))
    names = {".".join(field.name for field in place) for place in places}
    assert {"graph.initializer", "functions.attribute_proto.t", "graph.node.attribute.sparse_tensor.values"} <= names
    for place in places:
        proto = conv_net()
        message: Any = proto
        for field in place:
            message = getattr(message, field.name)
            message = message.add() if field.is_repeated else message
        message.name, message.data_location = "planted", TensorProto.EXTERNAL
        message.external_data.add(key="location", value="../secret.bin")
        with pytest.raises(ModelFileError, match=r"tensor 'planted' lies in '\.\./secret\.bin', outside"):
            read_proto(saved(proto, tmp_path))
