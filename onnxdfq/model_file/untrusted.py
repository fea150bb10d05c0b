"""Reading a model file that may be broken or hostile: each refusal is one sentence."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from onnxdfq.errors import ModelFileError, UnsupportedOperator
from onnxdfq.model_file.unshaped import all_shaped
from onnxdfq.paths import read_ordinary

Found = TypeVar("Found", bound=Message)
MOST_BYTES = 2**31 - 1
"""Of a model without its external data: protobuf reads no more."""
# Number and wire type of the fields of onnx.ModelProto (onnx.proto3): 0 is a varint, 2 is length-delimited.
_NOT_UTF_8 = "is damaged: a text in it is not UTF-8; copy or export it again."
MOST_NUMBERS = 2**58  # of a tensor, sizes of 0 left out of account: what numpy's strides count
_MOST_NODES = 1_000_000  # of a model whose functions are inlined
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}


def read_proto(path: Path) -> onnx.ModelProto:
    """The file's ModelProto; external data is checked (`external_file`) and not loaded.

    Raises:
        ModelFileError: The file cannot be read, is not ONNX, is cut off, or its external data is unusable.
    """
    data = read_ordinary(path, most=MOST_BYTES, kind=ModelFileError)
    if not data:
        raise ModelFileError(f"{path} is empty; it is not an ONNX model.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelFileError(f"{path} {_why_not_parsed(data)}") from error
    except UnicodeDecodeError as error:  # protobuf in Python alone, where its C library is not at hand
        raise ModelFileError(f"{path} {_NOT_UTF_8}") from error
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelFileError(f"{path} {_why_not_parsed(data)}")
    _refuse_broken_text(path, proto)
    if not proto.opset_import:
        raise ModelFileError(f"{path} names no opset, so it was probably cut off; copy or export it again.")
    for tensor in _external_tensors(proto):
        external_file(path, tensor)
    _refuse_many_calls(path, proto)
    _spell_default_domain(proto)
    return proto


def model_hash(path: Path) -> str:
    """SHA-256 in hexadecimal of the file followed by its external data files; without these, what `sha256sum` gives.

    Raises:
        ModelFileError: As `read_proto` does.
    """
    return hash_of(files_of(path))


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 in hexadecimal of the bytes of files, one behind the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """The file itself and those of its external data. Raises ModelFileError as `read_proto` does."""
    proto = read_proto(path)
    return [path, *sorted({external_file(path, tensor) for tensor in _external_tensors(proto)})]


def bytes_of(path: Path) -> int:
    """Of the file and its external data. Raises ModelFileError as `read_proto` does."""
    return bytes_in(files_of(path))


def bytes_in(files: Iterable[Path]) -> int:
    """Of all these files."""
    return sum(file.stat().st_size for file in files)


def external_file(path: Path, tensor: onnx.TensorProto) -> Path:
    """The file that holds the external data of `tensor`.

    Raises:
        ModelFileError: It lies outside the folder of the model at `path`, is missing or too short; names the tensor.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location: str = entries.get("location", "")
    what = f"{path}: the external data of tensor {tensor.name!r}"
    if tensor.data_type == onnx.TensorProto.STRING:
        raise ModelFileError(f"{what} should hold text, which ONNX keeps in the model file only; export it again.")
    if not location:
        raise ModelFileError(f"{what} names no file; export the model again.")
    folder: Path = path.parent.resolve()
    # Windows paths are refused on every system: the model must mean the same file everywhere.
    absolute = location.startswith(("/", "\\")) or location[1:2] == ":"
    try:
        inside = not absolute and "\0" not in location and (folder / location).resolve().is_relative_to(folder)
        found = inside and (folder / location).is_file()
    except (OSError, RuntimeError) as error:  # a name too long, links that go round in a circle
        reason = error.strerror if isinstance(error, OSError) else "its links go round in a circle"
        raise ModelFileError(f"{what} lies in a file that cannot be opened: {reason}.") from error
    if not inside or ".." in location.replace("\\", "/").split("/"):
        raise ModelFileError(
            f"{what} lies in {location!r}, outside the model's own folder, which is refused; "
            "put the data file beside the model and name it by a relative path."
        )
    file = folder / location
    if not found:
        raise ModelFileError(f"{what} is missing: there is no file {location!r} beside the model.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", 0)) or _size_in_bytes(tensor)
    except ValueError as error:
        raise ModelFileError(f"{what} has an offset or a length that is not a number.") from error
    size = file.stat().st_size
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFileError(f"{what} should be bytes {offset} to {offset + length} of {location!r}, which has {size}.")
    return file


def _refuse_broken_text(path: Path, proto: onnx.ModelProto) -> None:
    """Protobuf hands out bytes where a text is not UTF-8; all code behind this expects text."""
    messages: list[Message] = [proto]
    while messages:
        for field, value in messages.pop().ListFields():
            repeated = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                messages.extend(repeated)
            elif field.type == FieldDescriptor.TYPE_STRING and any(isinstance(text, bytes) for text in repeated):
                raise ModelFileError(f"{path} {_NOT_UTF_8}")


def load_inner_data(path: Path, proto: onnx.ModelProto) -> None:
    """Loads external data wherever it lies but in the initializers of the graph, in place.

    Whatever reads these tensors later would look for their files in the current folder.
    """
    parts = [message for field, message in _parts(proto) if field != "graph"]
    parts += [message for field, message in _parts(proto.graph) if field != "initializer"]
    for tensor in (tensor for part in parts for tensor in _external_tensors(part)):
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent.resolve()))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _parts(message: Message) -> Iterator[tuple[str, Message]]:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from ((field.name, part) for part in (value if field.is_repeated else (value,)))


def _refuse_many_calls(path: Path, proto: onnx.ModelProto) -> None:
    """Functions that call functions grow by a factor at each level: nodes are counted before anybody inlines them."""
    bodies = {(function.domain, function.name): function for function in proto.functions}
    counts: dict[tuple[str, str], int] = {}
    waiting: list[tuple[str, str]] = list(bodies)
    inside: set[tuple[str, str]] = set()
    while waiting:
        key = waiting[-1]
        calls = [(node.domain, node.op_type) for node in messages_of(bodies[key], onnx.NodeProto)]
        open_calls = {call for call in calls if call in bodies and call not in counts}
        if key in counts or not open_calls:
            counts.setdefault(key, sum(counts.get(call, 1) for call in calls))
            inside.discard(waiting.pop())
            continue
        if open_calls & inside or key in open_calls:
            raise ModelFileError(f"{path}: its function {key[1]!r} calls itself, which ONNX does not allow.")
        inside.add(key)
        waiting.extend(open_calls)
    calls = [(node.domain, node.op_type) for node in messages_of(proto.graph, onnx.NodeProto)]
    if (total := sum(counts.get(call, 1) for call in calls)) > _MOST_NODES:
        raise ModelFileError(
            f"{path} comes to {total:,} nodes once its functions are inlined, and up to {_MOST_NODES:,} are read."
        )


def _spell_default_domain(proto: onnx.ModelProto) -> None:
    """ONNX's own domain is "", and may be written "ai.onnx": here it is "" alone."""
    named = [entry for entry in proto.opset_import if entry.domain == "ai.onnx"]
    if named and any(entry.domain == "" for entry in proto.opset_import):
        proto.opset_import.remove(named[0])
    opsets = [*proto.opset_import, *(entry for function in proto.functions for entry in function.opset_import)]
    for message in (*opsets, *messages_of(proto, onnx.NodeProto), *proto.functions):
        if message.domain == "ai.onnx":
            message.domain = ""


def refuse_ill_formed(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses a model that onnx.checker refuses, and drops what only tells several devices apart.

    Raises:
        UnsupportedOperator: ONNX's own domain has no such operator at the file's opset.
        ModelFileError: onnx.checker finds anything else.
    """
    opset = {entry.domain: entry.version for entry in proto.opset_import}.get("", 0)
    for node in proto.graph.node:
        if node.domain == "" and opset <= onnx.defs.onnx_opset_version() and not _known(node, opset):
            raise UnsupportedOperator(
                f"{path}: ONNX opset {opset} has no operator {node.op_type} (domain 'ai.onnx'), which node "
                f"{node.name or ', '.join(node.output)!r} uses."
            )
    proto.ClearField("configuration")
    for node in messages_of(proto, onnx.NodeProto):
        node.ClearField("device_configurations")  # on which of several devices it runs: one is what we write for
        if node.op_type == "Constant" and node.domain == "" and len(node.attribute) != 1:
            raise ModelFileError(
                f"{path} is not a valid ONNX model: the Constant {node.name or ', '.join(node.output)!r} has "
                f"{len(node.attribute) or 'no'} values instead of one."
            )
    for attribute in messages_of(proto.graph, onnx.AttributeProto):
        if attribute.ref_attr_name:
            raise ModelFileError(
                f"{path} is not a valid ONNX model: the attribute {attribute.name!r} stands for an attribute "
                f"{attribute.ref_attr_name!r} of a function, and lies in none."
            )
    for tensor in messages_of(proto, onnx.TensorProto):  # numpy makes none of these, even where one size is 0
        if math.prod(size or 1 for size in tensor.dims) > MOST_NUMBERS:
            sizes = " x ".join(map(str, tensor.dims))
            raise ModelFileError(f"{path} is not a valid ONNX model: the tensor {tensor.name!r} has the sizes {sizes}.")
    # The checker must not open external files.
    external = [
        (tensor, onnx.TensorProto.FromString(tensor.SerializeToString())) for tensor in _external_tensors(proto)
    ]
    ir_version = proto.ir_version
    try:
        # Up to IR 3 an initializer had to be an input as well: a rule that many exporters and no runtime kept.
        proto.ir_version = max(ir_version, 4)
        for tensor, _ in external:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.dims[:] = [0]
        with all_shaped(proto):
            onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelFileError(f"{path} is not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error
    finally:
        proto.ir_version = ir_version
        for tensor, original in external:
            tensor.CopyFrom(original)


def _known(node: onnx.NodeProto, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(node.op_type, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _size_in_bytes(tensor: onnx.TensorProto) -> int:
    try:
        item: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError):
        return 0
    return int(math.prod(tensor.dims)) * item


def _external_tensors(proto: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor with external data, wherever the schema has room for one."""
    return (tensor for tensor in messages_of(proto, onnx.TensorProto) if tensor.data_location == tensor.EXTERNAL)


def messages_of(message: Message, kind: type[Found]) -> Iterator[Found]:
    """All messages of a kind in `message`, itself included, at any depth, in the order of the file.

    A walk over the fields of the schema and no list of places: one that is forgotten would be a hole.
    """
    waiting: list[Message] = [message]
    while waiting:
        found = waiting.pop()
        if isinstance(found, kind):
            yield found
        parts: list[Message] = []
        for name, is_repeated in _fields_of_messages(found.DESCRIPTOR):
            if is_repeated:
                parts.extend(getattr(found, name))
            elif found.HasField(name):
                parts.append(getattr(found, name))
        waiting.extend(reversed(parts))


@cache
def _fields_of_messages(kind: Descriptor) -> tuple[tuple[str, bool], ...]:
    """Fields of a message that hold messages themselves: name, and whether it is repeated."""
    return tuple((field.name, field.is_repeated) for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE)


def _why_not_parsed(data: bytes) -> str:
    """Tells a truncated model from a file of another kind, by its outermost protobuf fields."""
    position, seen = 0, 0
    while position < len(data):
        key, position = _varint(data, position)
        if _MODEL_FIELDS.get(key >> 3) != key & 7:
            break
        value, position = _varint(data, position)
        if key & 7 == 2:
            if position + value > len(data) and seen:
                return (
                    f"is cut off: it has {len(data):,} bytes and needs at least {position + value:,}; "
                    "copy or download it again."
                )
            position += value
        seen += 1
    return "is not an ONNX model; give the .onnx file that an exporter wrote."


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            break
    return value, position
