"""Activation functions; where one has a kink, its slope is the engine's."""

import math

import onnx_ir as ir

from passes.training.tape import Gradients, Outputs, Table, Tape, present


def _relu(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    positive = node.outputs[0]
    return (lambda: tape.where(tape.op("Greater", positive, tape.constant(0.0)), present(given[0])),)


def _leaky_relu(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, alpha = present(given[0]), node.attributes.get_float("alpha", 0.01)

    def of_input() -> ir.Value:
        positive = tape.op("Greater", node.inputs[0], tape.constant(0.0))
        return tape.op("Where", positive, g, tape.op("Mul", g, tape.constant(alpha)))

    return (of_input,)


def _p_relu(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, x, slope = present(given[0]), node.inputs[0], node.inputs[1]

    def negative() -> ir.Value:
        return tape.op("Less", x, tape.constant(0.0))

    return (
        lambda: tape.op("Where", negative(), tape.op("Mul", g, slope), g),
        lambda: tape.sum_to(tape.where(negative(), tape.op("Mul", g, x)), node, slope),
    )


def _elu(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, alpha, y = present(given[0]), node.attributes.get_float("alpha", 1.0), node.outputs[0]

    def of_input() -> ir.Value:
        curved = tape.op("Mul", g, tape.op("Add", y, tape.constant(alpha)))
        return tape.op("Where", tape.op("Greater", node.inputs[0], tape.constant(0.0)), g, curved)

    return (of_input,)


def _clip(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Passes on the bounds, too; between QuantizeLinear and DequantizeLinear it bounds integers."""
    g, x = present(given[0]), node.inputs[0]

    def of_input() -> ir.Value:
        if any(bound in node.attributes for bound in ("min", "max")):
            raise tape.refuse(node, "it is of an opset before 11")
        found, number = g, _as_float(tape, x)
        for bound, comparison in zip(node.inputs[1:3], ("GreaterOrEqual", "LessOrEqual"), strict=False):
            if bound is not None:
                found = tape.where(tape.op(comparison, number, _as_float(tape, bound)), found)
        return found

    return (of_input,)


def _as_float(tape: Tape, value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value if value.dtype == ir.DataType.FLOAT else tape.op("Cast", value, to=int(ir.DataType.FLOAT))


def _smooth(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, x, y = given[0], node.inputs[0], node.outputs[0]
    assert x is not None
    return (lambda: tape.op("Mul", g, _slope(tape, node, x, y)),)


def _slope(tape: Tape, node: ir.Node, x: ir.Value, y: ir.Value) -> ir.Value:
    one = tape.constant(1.0)
    match node.op_type:
        case "Sigmoid":
            return tape.op("Mul", y, tape.op("Sub", one, y))
        case "Tanh":
            return tape.op("Sub", one, tape.op("Mul", y, y))
        case "Softplus":
            return tape.op("Sigmoid", x)
        case "Swish":
            alpha = tape.constant(node.attributes.get_float("alpha", 1.0))
            gate = tape.op("Sigmoid", tape.op("Mul", alpha, x))  # s + a x s (1 - s) = s + a y (1 - s)
            return tape.op("Add", gate, tape.op("Mul", tape.op("Mul", alpha, y), tape.op("Sub", one, gate)))
        case "HardSigmoid":
            rise, middle = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            return _between(tape, x, -middle / rise, (1 - middle) / rise, tape.constant(rise))
        case "HardSwish":
            ramp = tape.op("Add", tape.op("Div", x, tape.constant(3.0)), tape.constant(0.5))
            bent = _between(tape, x, -3.0, 3.0, ramp)
            return tape.op("Where", tape.op("Greater", x, tape.constant(3.0)), one, bent)
        case _:
            return _gelu_slope(tape, node, x)


def _between(tape: Tape, x: ir.Value, low: float, high: float, value: ir.Value) -> ir.Value:
    """`value` where low <= x <= high, zero elsewhere."""
    above = tape.where(tape.op("GreaterOrEqual", x, tape.constant(low)), value)
    return tape.where(tape.op("LessOrEqual", x, tape.constant(high)), above)


def _gelu_slope(tape: Tape, node: ir.Node, x: ir.Value) -> ir.Value:
    """Of x Φ(x): Φ(x) + x φ(x); of its approximation by tanh with u = √(2/π) (x + .044715 x³)."""
    half, one = tape.constant(0.5), tape.constant(1.0)
    square = tape.op("Mul", x, x)
    if node.attributes.get_string("approximate", "none") == "none":
        error = tape.op("Erf", tape.op("Mul", x, tape.constant(math.sqrt(0.5))))
        share = tape.op("Mul", half, tape.op("Add", one, error))
        bell = tape.op("Exp", tape.op("Mul", square, tape.constant(-0.5)))
        return tape.op("Add", share, tape.op("Mul", tape.op("Mul", x, bell), tape.constant(1 / math.sqrt(2 * math.pi))))
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    inner = tape.op("Mul", x, tape.op("Add", tape.constant(root), tape.op("Mul", square, tape.constant(root * cubic))))
    tanh = tape.op("Tanh", inner)
    rate = tape.op("Add", tape.constant(root), tape.op("Mul", square, tape.constant(3 * root * cubic)))
    curve = tape.op("Mul", tape.op("Sub", one, tape.op("Mul", tanh, tanh)), tape.op("Mul", x, rate))
    return tape.op("Mul", half, tape.op("Add", tape.op("Add", one, tanh), curve))


def _softmax(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """y (g - Σ g y); of LogSoftmax g - exp(y) Σ g."""
    g, y = given[0], node.outputs[0]
    axis = tape.integers(node.attributes.get_int("axis", -1))

    def of_input() -> ir.Value:
        if node.op_type == "LogSoftmax":
            total = tape.op("ReduceSum", g, axis, keepdims=1)
            return tape.op("Sub", g, tape.op("Mul", tape.op("Exp", y), total))
        total = tape.op("ReduceSum", tape.op("Mul", g, y), axis, keepdims=1)
        return tape.op("Mul", y, tape.op("Sub", g, total))

    return (of_input,)


RULES: Table = {
    "Clip": _clip,
    "Elu": _elu,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _softmax,
    "PRelu": _p_relu,
    "Relu": _relu,
    "Softmax": _softmax,
    **dict.fromkeys(("Gelu", "HardSigmoid", "HardSwish", "Sigmoid", "Softplus", "Swish", "Tanh"), _smooth),
}
