"""Models of float16, bfloat16 or float64, computed in float32: what they take, hold and give becomes float32."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from passes.graph.compared import FLOATS
from passes.graph.operators import LINEAR

_OTHERS = tuple(dtype for dtype in FLOATS if dtype != ir.DataType.FLOAT)
_TYPE_ATTRIBUTES = ("to", "dtype")
_NAMES = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16", ir.DataType.DOUBLE: "float64"}


def to_float32(model: ir.Model) -> str | None:
    """Makes a float32 model of one whose layers or boundary are of another float type, in place.

    A float64 constant somewhere in a float32 network (the scale of a Resize, a Range) is no such model, and stays.

    Args:
        model: Functions inlined, constants lifted to initializers.

    Returns:
        The name of the type that went, None where the model stays as it is.
    """
    found = set(_types_of_layers(model))
    if not found:
        return None
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in found:
                array = value.const_value.numpy().astype(np.float32)
                value.const_value = ir.tensor(array, name=value.name)
                value.dtype = ir.DataType.FLOAT
        for value in (*graph.inputs, *graph.outputs):
            _retype(value, found)
        for node in graph:
            for value in node.outputs:
                _retype(value, found)
            for attribute in list(node.attributes.values()):
                _retype_attribute(node, attribute, found)
    return " and ".join(sorted(_NAMES[dtype] for dtype in found))


def _types_of_layers(model: ir.Model) -> Iterator[ir.DataType]:
    values = [*model.graph.inputs, *model.graph.outputs]
    for node in model.graph.all_nodes():
        if node.op_type in LINEAR:
            values += [value for value in (*node.inputs[1:2], *node.outputs) if value is not None]
    for value in values:
        dtype = value.dtype if value.const_value is None else value.const_value.dtype
        if dtype in _OTHERS:
            yield dtype


def _retype(value: ir.Value, found: set[ir.DataType]) -> None:
    if value.dtype in found:
        value.dtype = ir.DataType.FLOAT


def _retype_attribute(node: ir.Node, attribute: ir.Attr, found: set[ir.DataType]) -> None:
    if attribute.name in _TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.value in found:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.FLOAT))
    elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in found:
        array = attribute.as_tensor().numpy().astype(np.float32)
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(array))
