"""onnx's C++ tools on an onnx-ir model. They drop metadata and end at 2 GB: metadata and weights go around them."""

from collections.abc import Callable

import onnx
import onnx_ir as ir

from passes.graph.bodies import named_subgraphs, subgraphs
from passes.graph.editing import name_of

# Bytes. Adapters and data propagation read small constants (shapes, scales, axes); nothing reads a weight.
CARRIED_INLINE = 1024


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers, subgraphs included, without loading any."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def float_bytes(model: ir.Model) -> int:
    """Bytes of all initializers as float32, which ONNX Runtime may make of integers too; none is loaded."""
    return sum(
        4 * int(value.const_value.size)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def through_proto(
    model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto], *, with_weights: bool = False
) -> ir.Model:
    """The model that `change` makes of the protobuf.

    Metadata and doc strings are restored by name: of model, graph and values, and of nodes by their first output.

    Args:
        model: Read only; its weights are shared with the result, not copied.
        change: From protobuf to protobuf.
        with_weights: Whether `change` gets the weights; else initializers above 1 KB are graph inputs to it.
    """
    proto, weights = without_weights(model) if not with_weights else (ir.to_proto(model), {})
    result = ir.from_proto(change(proto))
    for value in [value for value in result.graph.inputs if value.name in weights]:
        result.graph.inputs.remove(value)
        value.const_value = weights[name_of(value)]
        result.graph.register_initializer(value)
    _restore_metadata(model, result)
    return result


def infer_shapes(model: ir.Model, *, strict: bool, bodies: bool = False) -> None:
    """Infers types and shapes of all values of the graph, in place, from those of the inputs.

    Inferred shapes of outputs replace the declared ones.

    Args:
        model: To which they are added.
        strict: Whether a node may not contradict its inputs.
        bodies: Whether values in bodies of If, Loop and Scan get theirs, too.

    Raises:
        onnx.shape_inference.InferenceError: Where `strict`, a node contradicts its inputs.
    """
    proto, _ = without_weights(model)
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    if not strict:
        _forget_what_is_inferred(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=True)
    except onnx.shape_inference.InferenceError:
        if strict:
            raise
        return
    _take(model.graph, inferred.graph, bodies=bodies)


def with_inferred_bodies(model: ir.Model) -> ir.Model:
    """The model, or where it has bodies a copy in which their values have types and shapes, as `read_model` infers."""
    if not any(map(subgraphs, model.graph)):
        return model
    copy = model.clone()
    infer_shapes(copy, strict=False, bodies=True)
    return copy


def _take(graph: ir.Graph, inferred: onnx.GraphProto, *, bodies: bool) -> None:
    values = {value.name: value for node in graph for value in node.outputs if value.name}
    for info in (*inferred.value_info, *inferred.output):
        value = values.get(info.name)
        tensor = info.type.HasField("tensor_type")
        if value is None or (tensor and not info.type.tensor_type.elem_type) or info.type.WhichOneof("value") is None:
            continue
        found = ir.from_proto(info)
        value.type = found.type
        if found.shape is not None:
            declared = value.shape if value.is_graph_output() else None
            value.shape = _merged(found.shape, declared)
    for node, twin in zip(graph, inferred.node, strict=True) if bodies else ():
        found_in = {attribute.name: attribute.g for attribute in twin.attribute if attribute.HasField("g")}
        for name, body in named_subgraphs(node):
            if name in found_in:
                _take(body, found_in[name], bodies=True)


def _forget_what_is_inferred(proto: onnx.ModelProto) -> None:
    """What a file tells of values that ONNX's own operators compute may be false, and ONNX Runtime does not mind."""
    known = {name for node in proto.graph.node if node.domain == "" for name in node.output}
    kept = [info for info in proto.graph.value_info if info.name not in known]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)


def _merged(found: ir.Shape, declared: ir.Shape | None) -> ir.Shape:
    """The inferred shape; sizes that onnx could not infer, to which it gives names of its own, stay as declared."""
    if declared is None or len(declared) != len(found):
        declared = ir.Shape([None] * len(found))
    made_up = [isinstance(dim, ir.SymbolicDim) and (dim.value or "unk__").startswith("unk__") for dim in found]
    return ir.Shape([old if unknown else new for new, old, unknown in zip(found, declared, made_up, strict=True)])


def without_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model's protobuf with weights above 1 KB as graph inputs, and these weights by name."""
    light = model.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= CARRIED_INLINE or value in light.graph.outputs:
            continue
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        light.graph.initializers.pop(name)
        value.const_value = None
        if value not in light.graph.inputs:
            light.graph.inputs.append(value)
        weights[name] = tensor
    return ir.to_proto(light), weights


def _restore_metadata(source: ir.Model, target: ir.Model) -> None:
    target.metadata_props.clear()
    target.metadata_props.update(source.metadata_props)
    target.graph.metadata_props.clear()
    target.graph.metadata_props.update(source.graph.metadata_props)
    target.producer_name, target.producer_version = source.producer_name, source.producer_version
    target.domain, target.model_version, target.doc_string = source.domain, source.model_version, source.doc_string
    target.graph.name, target.graph.doc_string = source.graph.name, source.graph.doc_string
    known = {node.outputs[0].name: node for node in source.graph.all_nodes() if node.outputs}
    for node in target.graph.all_nodes():
        origin = known.get(node.outputs[0].name) if node.outputs else None
        # An optimizer may give a fused node the name of the value that it replaces: then it is another node.
        if origin is not None and origin.op_type == node.op_type:
            node.metadata_props.clear()
            node.metadata_props.update(origin.metadata_props)
            node.doc_string = origin.doc_string
    values = {value.name: value for value in _values(source.graph)}
    for value in _values(target.graph):
        if (same := values.get(value.name)) is not None and same.metadata_props:
            value.metadata_props.update(same.metadata_props)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
