"""Mutations of a model that know what a graph is: nodes, edges, attributes, shapes, types, names, tensors."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from . import extremes
from .extremes import Random, pick

Model = onnx.ModelProto
FREQUENT = (
    "Relu", "Conv", "Gemm", "MatMul", "Add", "Mul", "Div", "Reshape", "Transpose", "Concat", "Identity", "Clip",
    "BatchNormalization", "Softmax", "MaxPool", "AveragePool", "Expand", "Tile", "ConstantOfShape", "Range", "Gather",
    "Slice", "Pad", "Resize", "ReduceMean", "Where", "Cast", "Shape", "Split", "Squeeze", "Unsqueeze", "Sigmoid",
    "ScatterND", "NonZero", "TopK", "Einsum", "OneHot", "CumSum", "EyeLike", "RandomNormal", "Dropout", "If", "Loop",
    "QuantizeLinear", "DequantizeLinear", "SequenceConstruct", "Optional", "StringNormalizer", "LSTM", "GRU", "Pow",
)  # fmt: skip
_KINDS = (
    AttributeProto.INT,
    AttributeProto.INTS,
    AttributeProto.FLOAT,
    AttributeProto.STRING,
    AttributeProto.FLOATS,
)
EVERY = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas()}))


def mutate_node(random: Random, model: Model) -> None:
    """A node goes, comes twice, changes places, or becomes another operator or one of another domain."""
    nodes = pick(random, _bodies(model)).node
    if not nodes:
        return
    at = int(random.integers(len(nodes)))
    what = random.integers(6)
    if what == 0:
        del nodes[at]
    elif what == 1:
        nodes.append(nodes[at])
    elif what == 2:
        other = int(random.integers(len(nodes)))
        one, two = (onnx.NodeProto.FromString(nodes[place].SerializeToString()) for place in (at, other))
        nodes[at].CopyFrom(two)
        nodes[other].CopyFrom(one)
    elif what == 3:
        nodes[at].domain = pick(random, ("ai.onnx", "com.microsoft", "local", "ai.onnx.ml", extremes.name(random)))
    elif what == 4:
        nodes[at].overload = extremes.name(random)
    else:
        nodes[at].op_type = pick(random, FREQUENT if random.random() < 0.7 else EVERY)
        if random.random() < 0.5:
            del nodes[at].attribute[:]


def mutate_edge(random: Random, model: Model) -> None:
    """An input or output of a node, or of the graph, is another value, none, or one too many."""
    body = pick(random, _bodies(model))
    values = [*_values(model), ""]
    name = pick(random, values) if random.random() < 0.85 else extremes.name(random)
    if not body.node or random.random() < 0.1:
        ends = pick(random, [list(body.input), list(body.output)]) if isinstance(body, onnx.GraphProto) else []
        if ends:
            pick(random, ends).name = name
        return
    node = pick(random, list(body.node))
    names = node.input if random.random() < 0.7 else node.output
    what = random.integers(4)
    if what == 0 and names:
        del names[int(random.integers(len(names)))]
    elif what == 1:
        names.append(name)
    elif names:
        names[int(random.integers(len(names)))] = name


def mutate_attribute(random: Random, model: Model) -> None:
    """An attribute gets an extreme value, another type, goes, or comes new by the operator's schema."""
    node = pick(random, list(pick(random, _bodies(model)).node) or [onnx.NodeProto()])
    try:
        known = list(onnx.defs.get_schema(node.op_type, node.domain).attributes)
    except onnx.defs.SchemaError:
        known = []
    if node.attribute and (random.random() < 0.6 or not known):
        attribute = pick(random, list(node.attribute))
        if random.random() < 0.2:
            node.attribute.remove(attribute)
            return
    else:
        attribute = node.attribute.add(name=pick(random, known) if known else extremes.name(random))
    kinds = [
        AttributeProto.INT,
        AttributeProto.INTS,
        AttributeProto.FLOAT,
        AttributeProto.STRING,
        AttributeProto.FLOATS,
    ]
    if attribute.type not in kinds or random.random() < 0.1:
        attribute.type = pick(random, kinds)
    if attribute.type == AttributeProto.INT:
        attribute.i = extremes.whole(random)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = extremes.real(random)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = pick(random, (extremes.name(random).encode(), random.bytes(5), b"SAME_UPPER", b"nearest", b"sum"))
    elif attribute.type == AttributeProto.FLOATS:
        attribute.floats[:] = [extremes.real(random) for _ in range(random.integers(4))]
    else:
        kept = list(attribute.ints) or [1, 1]
        kept[int(random.integers(len(kept)))] = extremes.whole(random)
        attribute.ints[:] = kept if random.random() < 0.7 else [*kept, extremes.whole(random)]


def mutate_shape(random: Random, model: Model) -> None:
    """A size of an input, an output, an inner value or a tensor changes; so does how many there are."""
    places: list[Any] = [
        value.type.tensor_type.shape
        for graph in _graphs(model)
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.HasField("tensor_type")
    ]
    if not places or random.random() < 0.25:
        tensor = pick(random, _tensors(model) or [TensorProto()])
        dims = list(tensor.dims) or [1]
        dims[int(random.integers(len(dims)))] = extremes.whole(random)
        tensor.dims[:] = dims if random.random() < 0.7 else [*dims, 1]
        return
    shape = pick(random, places)
    what = random.integers(5)
    if what == 0 and shape.dim:
        del shape.dim[int(random.integers(len(shape.dim)))]
    elif what == 1 or not shape.dim:
        shape.dim.add().dim_value = extremes.whole(random)
    elif what == 2:
        pick(random, list(shape.dim)).dim_param = extremes.name(random)
    elif what == 3:
        pick(random, list(shape.dim)).Clear()
    else:
        pick(random, list(shape.dim)).dim_value = extremes.whole(random)


def mutate_type(random: Random, model: Model) -> None:
    """A value or tensor is of another element type, or no tensor at all; opsets and the IR are others."""
    number = int(random.integers(0, 30))
    what = random.random()
    if what < 0.15:
        model.ir_version = extremes.whole(random) if random.random() < 0.5 else int(random.integers(3, 14))
    elif what < 0.35:
        entry = pick(random, list(model.opset_import) or [onnx.OperatorSetIdProto()])
        entry.version = extremes.whole(random) if random.random() < 0.4 else int(random.integers(6, 27))
    elif what < 0.6:
        pick(random, _tensors(model) or [TensorProto()]).data_type = number
    else:
        ends = [value for graph in _graphs(model) for value in (*graph.input, *graph.output, *graph.value_info)]
        value = pick(random, ends or [onnx.ValueInfoProto()])
        if random.random() < 0.75:
            value.type.tensor_type.elem_type = number
        else:
            kind = pick(random, ("sequence_type", "optional_type", "map_type", "sparse_tensor_type"))
            getattr(value.type, kind).SetInParent()


def mutate_name(random: Random, model: Model) -> None:
    """A node, value, tensor, graph, domain or note gets a wild name; a value does wherever it stands."""
    new = extremes.name(random)
    what = random.random()
    if what < 0.3:
        pick(random, list(pick(random, _bodies(model)).node) or [onnx.NodeProto()]).name = new
    elif what < 0.75:
        old = pick(random, _values(model) or ["x"])
        for body in _bodies(model):
            parts = [*body.initializer, *body.value_info, *body.input, *body.output] if _is_graph(body) else []
            for part in parts:
                part.name = new if part.name == old else part.name
            for node in body.node:
                node.input[:] = [new if name == old else name for name in node.input]
                node.output[:] = [new if name == old else name for name in node.output]
    elif what < 0.9:
        field = pick(random, ("producer_name", "producer_version", "domain", "doc_string"))
        setattr(model, field, new)
        model.graph.name = new if random.random() < 0.5 else model.graph.name
    else:
        model.metadata_props.add(key=pick(random, ("onnxdfq.norm", "onnxdfq.target", "norm", new)), value=new)


def mutate_tensor(random: Random, model: Model) -> None:
    """The numbers of a tensor: NaN, infinity, huge, all zero; of a wrong length; elsewhere; in another field."""
    tensor = pick(random, _tensors(model) or [TensorProto()])
    what = random.integers(8)
    if what < 4 and tensor.data_location != TensorProto.EXTERNAL:
        try:
            array = np.array(numpy_helper.to_array(tensor))
        except Exception:  # it is damaged already
            return
        if array.dtype.kind == "f" and array.size:
            count = int(random.integers(1, 1 + array.size))
            with np.errstate(over="ignore"):
                array.flat[random.integers(0, array.size, count)] = extremes.real(random)
        elif array.dtype.kind in "iu" and array.size:
            array.flat[random.integers(array.size)] = extremes.whole(random) & 0x7F
            if array.dtype == np.int64 and random.random() < 0.7:
                array.flat[random.integers(array.size)] = extremes.whole(random)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    elif what == 4:
        tensor.raw_data = extremes.chop(random, tensor.raw_data or b"\0" * 8)
    elif what == 5:
        tensor.raw_data = b""
        getattr(tensor, pick(random, ("float_data", "int32_data", "int64_data", "double_data")))[:] = [1] * 3
    elif what == 6:
        tensor.data_location = TensorProto.EXTERNAL
        key = pick(random, ("location", "offset", "length", "checksum"))
        wild = ("weights.bin", "../x", "/dev/zero", "/etc/passwd", ".", "", "a" * 300, "loop", "\0", "-1", str(2**70))
        tensor.external_data.add(key=key, value=pick(random, wild))
    else:
        tensor.string_data.append(random.bytes(4))
        tensor.data_type = TensorProto.STRING if random.random() < 0.5 else tensor.data_type


MUTATORS: dict[str, Callable[[Random, Model], None]] = {
    "node": mutate_node,
    "edge": mutate_edge,
    "attribute": mutate_attribute,
    "shape": mutate_shape,
    "type": mutate_type,
    "name": mutate_name,
    "tensor": mutate_tensor,
}


def _is_graph(body: Any) -> bool:
    return isinstance(body, onnx.GraphProto)


def _bodies(model: Model) -> list[Any]:
    """Graphs and functions, the main graph three times as likely."""
    return [model.graph, model.graph, *_graphs(model), *model.functions]


def _graphs(model: Model) -> list[onnx.GraphProto]:
    """The graph and those inside its nodes."""
    found, waiting = [], [model.graph]
    while waiting:
        graph = waiting.pop()
        found.append(graph)
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs])
    return found


def _tensors(model: Model) -> list[TensorProto]:
    return list(_every_tensor(model))


def _every_tensor(model: Model) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
    for body in _bodies(model)[1:]:
        for node in body.node:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _values(model: Model) -> list[str]:
    """Names of all values."""
    names = [name for body in _bodies(model)[1:] for node in body.node for name in (*node.input, *node.output)]
    return [*names, *(tensor.name for tensor in model.graph.initializer)]
