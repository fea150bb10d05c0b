"""Nodes that no rule judges and that compute on floats all the same: LSTM, Exp, operators that are not ONNX's."""

from collections.abc import Set

import onnx_ir as ir

from passes.graph.bodies import subgraphs
from passes.graph.editing import is_constant, is_op
from passes.graph.operators import MOVEMENTS, RANDOM
from passes.target.target import Target

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
# Those that put numbers elsewhere, say where they stand, or compare them: on integers they come to the same.
_PLACES = MOVEMENTS | {
    *("CenterCropPad", "Compress", "Concat", "Dropout", "OneHot", "Pad", "ReverseSequence", "Scatter"),
    *("ScatterElements", "ScatterND", "Trilu", "Unique", "Where"),
}
_COMPARES = frozenset(
    {
        *("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero"),
        "TopK",
    }
)
_MAKES = RANDOM | {"Cast", "CastLike", "Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size"}
_CONTAINERS = ("Sequence", "Optional", "ConcatFromSequence", "SplitToSequence")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")  # ONNX Runtime has some of its own, too
_WEIGHTS_ONLY = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


def reason_for_float(node: ir.Node, target: Target) -> str | None:
    """Why `node`, which no rule of `target` is for, is taken to compute in float; None where it computes no floats."""
    if is_op(node, *_PLACES, *_COMPARES, *_MAKES) or node.op_type.startswith((*_CONTAINERS, *_QUANTIZERS)):
        return None
    if subgraphs(node):  # what it runs is judged node by node
        return None
    if is_op(node, "Resize", "Upsample") and node.attributes.get_string("mode", "nearest") == "nearest":
        return None
    read = [value for value in node.inputs if value is not None and not is_constant(value)]
    if not any(value.dtype in FLOATS or value.dtype is None for value in (*read, *node.outputs)):
        return None
    if node.op_type in _WEIGHTS_ONLY:
        return "only its weight is held as integers"
    if node.domain not in ("", "ai.onnx"):
        return f"it is an operator of {node.domain}, and no integer form of it is known"
    return f"no integer kernel of {target.title} is known for {node.op_type}"


def add_values_of_shapes(graph: ir.Graph, constants: Set[ir.Value], found: set[ir.Value]) -> None:
    """Adds values that follow from sizes of tensors and `constants` alone: no data passes through what computes them.

    found: holds those of the graph around, where `graph` is a body.
    """
    for node in graph:
        data = node.inputs[:1] if is_op(node, "CastLike") else node.inputs  # of the other input only the type counts
        known = [value in found or value in constants or is_constant(value) for value in data if value]
        follows = any(value in found for value in data) and all(known) and not subgraphs(node)
        if is_op(node, "Shape", "Size") or follows:
            found.update(node.outputs)
