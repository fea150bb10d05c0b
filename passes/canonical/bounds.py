"""Max and Min with a number as Clip, which moves onto the integers where it can."""

import logging

import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, add_initializer, constant_value, is_op, replace_with

logger = logging.getLogger(__name__)


def clip_by_numbers(graph: ir.Graph) -> int:
    """Max(x, c) -> Clip(x, c), Min(x, c) -> Clip(x, , c), of one constant number; Max(x, 0) -> Relu. How many."""
    names = FreshNames(graph)
    return sum(_clip(graph, node, names) for node in graph if is_op(node, "Max", "Min") and len(node.inputs) == 2)


def _clip(graph: ir.Graph, node: ir.Node, names: FreshNames) -> bool:
    arrays = [constant_value(value) for value in node.inputs]
    place = next((at for at, array in enumerate(arrays) if array is not None and array.size == 1), None)
    if place is None or arrays[1 - place] is not None:
        return False
    bound, x = arrays[place], node.inputs[1 - place]
    assert bound is not None and x is not None
    shape = x.shape
    if bound.dtype != np.float32 or not np.isfinite(bound).all() or shape is None or bound.ndim > len(shape):
        return False  # a constant of more axes than x has would add axes to the result
    if is_op(node, "Max") and not bound.any():
        plain = ir.node("Relu", [x], name=node.name)
    else:
        value = add_initializer(graph, names(f"{node.name}.bound"), bound.reshape(()))
        plain = ir.node("Clip", [x, value] if is_op(node, "Max") else [x, None, value], name=node.name)
    logger.debug("%s %s becomes %s", node.op_type, node.name, plain.op_type)
    replace_with(node, plain)
    return True
