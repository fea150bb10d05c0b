"""Which initializers of a float graph hold what training finds."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from passes.graph.compared import FLOATS
from passes.graph.editing import is_op, name_of
from passes.graph.operators import PARAMETERS

NORM_SLOTS = (1, 2)
"""Scale and bias of a normalization."""
SLOTS: Mapping[str, Sequence[int]] = {
    **PARAMETERS,
    "BatchNormalization": NORM_SLOTS,  # its statistics are no gradient's
    "GroupNormalization": NORM_SLOTS,
    "InstanceNormalization": NORM_SLOTS,
    "LayerNormalization": NORM_SLOTS,
    "RMSNormalization": (1,),
    "PRelu": (1,),
}


def trainable_initializers(model: ir.Model) -> tuple[str, ...]:
    """Names of the weights, biases, scales and slopes of the main graph, in graph order, each once.

    Constants of any other operator (bounds, exponents, what pixels are scaled by) are part of the formula.
    """
    return tuple(dict.fromkeys(name_of(value) for node in model.graph for value in _parameters(node)))


def _parameters(node: ir.Node) -> Iterator[ir.Value]:
    slots = (0, 1) if _is_bias(node) else SLOTS.get(node.op_type, ()) if is_op(node, node.op_type) else ()
    for slot in slots:
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if value is not None and value.is_initializer() and value.dtype in FLOATS:
            yield value


def _is_bias(node: ir.Node) -> bool:
    """Whether it adds a vector to a product of matrices."""
    if not is_op(node, "Add"):
        return False
    producers = [value.producer() for value in node.inputs if value is not None]
    return any(producer is not None and is_op(producer, "MatMul") for producer in producers)
