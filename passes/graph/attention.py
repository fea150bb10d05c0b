"""Where a graph attends: a product with what a Softmax makes of another product, both of computed values."""

from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.editing import is_op
from passes.graph.operators import MOVEMENTS

# Between the two products: scales, masks, relative positions, a soft limit; they change scores and leave them scores.
_ON_SCORES = MOVEMENTS | {"Add", "Cast", "Clip", "Div", "Mul", "Sub", "Tanh", "Where"}
_ON_WEIGHTS = MOVEMENTS | {"Cast", "Where"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One attention, of whatever number of heads.

    weights: softmax(Q Kᵀ) of shape (..., queries, keys), as the Softmax gives it. output: their product with the
    values, (..., queries, D), or (..., D, queries) where `transposed`: some networks multiply Vᵀ by the weights'
    transpose.
    """

    weights: ir.Value
    output: ir.Value
    transposed: bool


def find_attention(graph: ir.Graph) -> tuple[Attention, ...]:
    """All attentions of a canonical graph whose parts are operators of their own, in graph order.

    A Softmax over scores that a layer with a weight computes is none: that is how classifiers and gates end.
    """
    found: list[Attention] = []
    for node in graph:
        if is_op(node, "Softmax") and _follow_from_data(node.inputs[0]):
            weights = node.outputs[0]
            found.extend(
                Attention(weights=weights, output=product.outputs[0], transposed=place == 1)
                for product, place in _products(weights)
            )
    return tuple(found)


def is_transformer(graph: ir.Graph) -> bool:
    """Whether a network attends at least as often as it convolves: not one with an attention among its convolutions."""
    convolutions = sum(is_op(node, "Conv") for node in graph)
    return len(find_attention(graph)) >= max(1, convolutions)


def _is_product_of_data(node: ir.Node | None) -> bool:
    return node is not None and is_op(node, "MatMul") and not any(_is_constant(value) for value in node.inputs)


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _follow_from_data(scores: ir.Value | None) -> bool:
    """Whether a product of two computed values is what scores are made of."""
    waiting, seen = [scores], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer = value.producer()
        if _is_product_of_data(producer):
            return True
        if producer is not None and is_op(producer, *_ON_SCORES):
            waiting.extend(producer.inputs)
    return False


def _products(weights: ir.Value) -> list[tuple[ir.Node, int]]:
    """The products of computed values that read the weights, and as which operand."""
    found: list[tuple[ir.Node, int]] = []
    waiting, seen = [weights], {weights}
    while waiting:
        for use in waiting.pop().uses():
            if _is_product_of_data(use.node):
                found.append((use.node, use.idx))
            elif is_op(use.node, *_ON_WEIGHTS):
                ahead = [value for value in use.node.outputs if value not in seen]
                seen.update(ahead)
                waiting.extend(ahead)
    return found
