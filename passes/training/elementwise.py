"""Arithmetic element by element, with broadcasting."""

import math

import onnx_ir as ir

from passes.training.tape import Gradients, Outputs, Table, Tape


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Both inputs and the output."""
    a, b = node.inputs[:2]
    assert a is not None and b is not None
    return a, b, node.outputs[0]


def _add(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    (g, *_), (a, b, _) = given, _operands(node)
    assert g is not None
    return (lambda: tape.sum_to(g, node, a), lambda: tape.sum_to(g, node, b))


def _sub(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    (g, *_), (a, b, _) = given, _operands(node)
    assert g is not None
    return (lambda: tape.sum_to(g, node, a), lambda: tape.op("Neg", tape.sum_to(g, node, b)))


def _mul(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    (g, *_), (a, b, _) = given, _operands(node)
    return (
        lambda: tape.sum_to(tape.op("Mul", g, b), node, a),
        lambda: tape.sum_to(tape.op("Mul", g, a), node, b),
    )


def _div(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    (g, *_), (a, b, y) = given, _operands(node)
    return (
        lambda: tape.sum_to(tape.op("Div", g, b), node, a),
        lambda: tape.op("Neg", tape.sum_to(tape.op("Div", tape.op("Mul", g, y), b), node, b)),
    )


def _pow(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    (g, *_), (base, exponent, y) = given, _operands(node)

    def of_base() -> ir.Value:
        less = tape.op("Sub", tape.op("CastLike", exponent, base), tape.constant(1.0))
        slope = tape.op("Mul", tape.op("CastLike", exponent, base), tape.op("Pow", base, less))
        return tape.sum_to(tape.op("Mul", g, slope), node, base)

    def of_exponent() -> ir.Value:
        return tape.sum_to(tape.op("Mul", tape.op("Mul", g, y), tape.op("Log", base)), node, exponent)

    return (of_base, of_exponent)


def _where(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, (condition, chosen, other) = given[0], node.inputs
    zero = tape.constant(0.0)
    return (
        None,
        lambda: tape.sum_to(tape.op("Where", condition, g, zero), node, chosen),
        lambda: tape.sum_to(tape.op("Where", condition, zero, g), node, other),
    )


def _cast(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, (x, *_) = given[0], node.inputs
    kinds = {value.dtype for value in (x, node.outputs[0]) if value is not None}
    if kinds != {ir.DataType.FLOAT}:
        raise tape.refuse(node, "it changes the type, and only float32 trains")
    assert g is not None
    return (lambda: g,)


def _same(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Identity; Dropout, which passes all at inference; Round, straight through (arXiv 1308.3432)."""
    g = given[0]
    assert g is not None
    return (lambda: g,)


def _function(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Functions whose slope is a few operators away from what the forward pass has already."""
    g, x, y = given[0], node.inputs[0], node.outputs[0]

    def slope() -> ir.Value:
        match node.op_type:
            case "Abs":
                return tape.op("Sign", x)
            case "Exp":
                return y
            case "Log":
                return tape.op("Reciprocal", x)
            case "Reciprocal":
                return tape.op("Neg", tape.op("Mul", y, y))
            case "Sqrt":
                return tape.op("Div", tape.constant(0.5), y)
            case _:  # Erf
                bell = tape.op("Exp", tape.op("Neg", tape.op("Mul", x, x)))
                return tape.op("Mul", bell, tape.constant(2 / math.sqrt(math.pi)))

    return (lambda: tape.op("Mul", g, slope()),)


def _neg(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    return (lambda: tape.op("Neg", given[0]),)


RULES: Table = {
    "Add": _add,
    "Cast": _cast,
    "Div": _div,
    "Dropout": _same,
    "Identity": _same,
    "Mul": _mul,
    "Neg": _neg,
    "Pow": _pow,
    "Round": _same,
    "Sub": _sub,
    "Where": _where,
    **dict.fromkeys(("Abs", "Erf", "Exp", "Log", "Reciprocal", "Sqrt"), _function),
}
