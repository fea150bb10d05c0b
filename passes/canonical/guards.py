"""What exporters write behind a Softmax against rows in which all is masked."""

import logging

import onnx_ir as ir

from passes.graph.editing import discard, is_op, rank
from passes.graph.masks import is_never_masked_whole

logger = logging.getLogger(__name__)


def drop_nan_guards(graph: ir.Graph) -> int:
    """Where(IsNaN(w), 0, w) -> w, of a w = Softmax(x) over the last axis that no row of x makes NaN. How many.

    torch writes it behind each attention that takes a mask; between the two it keeps the weights from being one value.
    """
    return sum(_drop(node) for node in graph if is_op(node, "Where"))


def _drop(node: ir.Node) -> bool:
    asked, _, weights = node.inputs
    check, softmax = (None if value is None else value.producer() for value in (asked, weights))
    if weights is None or check is None or softmax is None or node.outputs[0].is_graph_output():
        return False
    if not is_op(check, "IsNaN") or check.inputs[0] is not weights or not is_op(softmax, "Softmax"):
        return False
    scores, axis = softmax.inputs[0], softmax.attributes.get_int("axis", -1)
    if scores is None or axis not in (-1, (rank(scores) or 0) - 1) or not is_never_masked_whole(scores):
        return False
    node.outputs[0].replace_all_uses_with(weights)
    discard(node)
    logger.debug("the check %s of what %s gives goes", check.name, softmax.name)
    return True
