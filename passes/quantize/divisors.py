"""What is divided by, where its grid would round the least of it to 0: NaN or infinity would come of that."""

from collections.abc import Mapping

import onnx_ir as ir

from passes.graph.editing import constant_value, is_constant, is_op, name_of
from passes.quantize.points import QuantPoints

PLACES = {"Div": 1, "Log": 0, "Reciprocal": 0}  # of the input that must not become 0


def divisors_at_zero(
    model: ir.Model, points: QuantPoints, ranges: Mapping[str, tuple[float, float]], widths: Mapping[str, int]
) -> frozenset[str]:
    """Names of values that have a grid of their own, or share one, and are better left float.

    Args:
        model: Float, with names.
        points: Of that model.
        ranges: By value name, the least and the greatest that calibration saw.
        widths: By name of what has a grid of its own, its bits; what has none stays as it is.
    """
    found = set()
    for node in model.graph:
        value = _divisor(node)
        root = points.same_as.get(name_of(value), name_of(value))
        if value is None or root not in ranges or root not in widths:
            continue
        least, greatest = ranges[root]
        nearest = max(least, -greatest, 0.0)
        # a threshold is the next power of two, at most
        if nearest < max(-least, greatest) / 2 ** widths[root]:
            found |= {root, name_of(value)}
    return frozenset(found)


def _divisor(node: ir.Node) -> ir.Value | None:
    """The input that must not become 0, where it is computed."""
    if is_op(node, *PLACES):
        value = node.inputs[PLACES[node.op_type]]
    elif is_op(node, "Pow") and (power := constant_value(node.inputs[1])) is not None and (power < 0).any():
        value = node.inputs[0]
    else:
        return None
    return None if value is None or is_constant(value) else value
