"""`differentiate`: the gradients of a loss, as nodes behind those that compute it."""

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from passes.graph.editing import is_op, name_of
from passes.quantize.reading import DOMAINS
from passes.training import (
    activations,
    convolution,
    elementwise,
    matrix,
    movement,
    normalization,
    pooling,
    quantizers,
)
from passes.training.tape import NotDifferentiable, Table, Tape

RULES: Table = {
    **elementwise.RULES,
    **activations.RULES,
    **matrix.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **movement.RULES,
    **normalization.RULES,
    **quantizers.RULES,
}
"""Name of the ONNX operator → its gradients."""

FLAT = frozenset(
    {"And", "ArgMax", "ArgMin", "Ceil", "ConstantOfShape", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsNaN",
     "Less", "LessOrEqual", "NonZero", "Not", "Or", "Range", "Shape", "Sign", "Size", "Xor"}
)  # fmt: skip
"""Operators through which nothing changes by small steps, so that no gradient passes."""


def differentiate(
    tape: Tape, seeds: Mapping[ir.Value, ir.Value], targets: Sequence[ir.Value]
) -> Mapping[ir.Value, ir.Value]:
    """Reverse-mode differentiation; only what lies between the targets and the loss is looked at.

    Args:
        tape: Of the graph that computes what the loss is of; gains nodes.
        seeds: Value → gradient of the loss by it.
        targets: Initializers or inputs, float32.

    Returns:
        Target → its gradient, of its shape.

    Raises:
        NotDifferentiable: An operator in between has no rule, or one that does not hold for the node; or the loss does
            not depend on a target.
    """
    nodes = list(tape.graph)
    moved = _depending(nodes, targets)
    gradients = dict(seeds)
    for node in reversed(nodes):
        given = [gradients.get(value) for value in node.outputs]
        if node in moved and any(gradient is not None for gradient in given):
            _pull_back(tape, node, given, moved, gradients)
    for target in targets:
        if target not in gradients:
            raise NotDifferentiable(f"the loss does not depend on {name_of(target)!r}")
    return {target: gradients[target] for target in targets}


def _depending(nodes: Sequence[ir.Node], targets: Sequence[ir.Value]) -> Collection[ir.Node | ir.Value]:
    """The nodes and values that change with a target."""
    found: set[ir.Node | ir.Value] = set(targets)
    for node in nodes:
        if not is_op(node, *FLAT) and any(value in found for value in node.inputs):
            found.update((node, *node.outputs))
    return found


def _pull_back(
    tape: Tape,
    node: ir.Node,
    given: Sequence[ir.Value | None],
    moved: Collection[ir.Node | ir.Value],
    gradients: dict[ir.Value, ir.Value],
) -> None:
    known = node.domain in ("", "ai.onnx") or (node.domain in DOMAINS and node.op_type in quantizers.RULES)
    rule = RULES.get(node.op_type) if known else None
    if rule is None:
        raise tape.refuse(node, "there is no rule for this operator")
    if any(gradient is not None for gradient in given[1:]) and not is_op(node, "Split"):
        raise tape.refuse(node, "more than its first output is used")
    makers = rule(tape, node, given)
    for place, value in enumerate(node.inputs):
        if value is None or value not in moved:
            continue
        make = makers[place] if place < len(makers) else None
        if make is None:
            raise tape.refuse(node, f"it has no gradient by its input {name_of(value)!r}")
        own = make()
        earlier = gradients.get(value)
        gradients[value] = own if earlier is None else tape.op("Add", earlier, own)
