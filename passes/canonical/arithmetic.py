"""Sub and Div by constants as Add and Mul, for which integer kernels exist."""

import logging

import numpy as np
import onnx_ir as ir

from passes.graph.editing import (
    FreshNames,
    as_float64,
    constant_value,
    is_constant,
    is_op,
    replace_with,
    set_constant_input,
)

logger = logging.getLogger(__name__)


def plain_arithmetic(graph: ir.Graph) -> int:
    """x - c -> x + (-c) and x / c -> x * (1 / c), of floats. How many."""
    names = FreshNames(graph)
    return sum(_make_plain(node, names) for node in graph if is_op(node, "Sub", "Div"))


def _make_plain(node: ir.Node, names: FreshNames) -> bool:
    data, constant = node.inputs[0], constant_value(node.inputs[1])
    if constant is None or constant.dtype.kind != "f" or is_constant(data):
        return False
    with np.errstate(divide="ignore", over="ignore"):
        other = (-constant if is_op(node, "Sub") else 1 / as_float64(constant)).astype(constant.dtype)
    if not np.isfinite(other).all():
        return False
    set_constant_input(node, 1, other, names, f"{node.name}.constant")
    plain = ir.node("Add" if is_op(node, "Sub") else "Mul", node.inputs, name=node.name)
    replace_with(node, plain)
    logger.debug("%s %s becomes %s", node.op_type, node.name, plain.op_type)
    return True
