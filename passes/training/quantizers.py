"""QuantizeLinear and DequantizeLinear, straight through, as the engine differentiates them.

For y = DequantizeLinear(QuantizeLinear(x, s), s):

    dy/dx = 1 inside the range, 0 outside                               (straight-through, arXiv 1308.3432)
    dy/ds = round(x/s) - x/s inside the range, q - zero point outside   (LSQ, Eq. 3 of arXiv 1902.08153)

Integers in between have gradients like the floats that they stand for, so that a Clip or a MaxPool may lie there.
"""

import onnx_ir as ir

from passes.training.tape import Gradients, Outputs, Table, Tape


def _quantize(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Of q = clip(round(x/s) + z): g/s and -g x/s² inside the range."""
    g, (x, scale, *_) = given[0], node.inputs
    assert g is not None and x is not None and scale is not None

    def passed() -> ir.Value:
        """g where the integer is not beyond the range."""
        steps = tape.op("Add", tape.op("Round", tape.op("Div", x, aligned(tape, node, 1))), _zero(tape, node))
        low, high = (tape.constant(float(end)) for end in _range(tape, node))
        return tape.where(tape.op("Equal", steps, tape.op("Clip", steps, low, high)), g)

    def of_scale() -> ir.Value:
        wide = aligned(tape, node, 1)
        slope = tape.op("Neg", tape.op("Div", tape.op("Div", x, wide), wide))
        return _summed(tape, node, tape.op("Mul", passed(), slope), scale)

    return (lambda: tape.op("Div", passed(), aligned(tape, node, 1)), of_scale)


def _dequantize(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Of y = (q - z) s: g s and g (q - z)."""
    g, (integers, scale, *_) = given[0], node.inputs
    assert g is not None and integers is not None and scale is not None

    def of_scale() -> ir.Value:
        number = tape.op("Sub", tape.op("Cast", integers, to=int(ir.DataType.FLOAT)), _zero(tape, node))
        return _summed(tape, node, tape.op("Mul", g, number), scale)

    return (lambda: tape.op("Mul", g, aligned(tape, node, 1)), of_scale)


def aligned(tape: Tape, node: ir.Node, slot: int) -> ir.Value:
    """Scale or zero point in a form that broadcasts against what is quantized."""
    value = node.inputs[slot]
    assert value is not None
    sizes = tape.known(node, value)
    if len(sizes) == 0 or sizes == (1,):
        return value
    if len(sizes) > 1 or node.attributes.get_int("block_size", 0) > 0:
        raise tape.refuse(node, "its scales belong to blocks")
    rank = len(tape.sizes(node, node.inputs[0]))
    axis = node.attributes.get_int("axis", 1) % rank
    behind = range(1, rank - axis)
    return tape.op("Unsqueeze", value, tape.integers(*behind)) if behind else value


def _zero(tape: Tape, node: ir.Node) -> ir.Value:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return tape.constant(0.0)
    return tape.op("Cast", aligned(tape, node, 2), to=int(ir.DataType.FLOAT))


def _range(tape: Tape, node: ir.Node) -> tuple[int, int]:
    kind = node.outputs[0].dtype
    if kind is None or not kind.is_integer():
        raise tape.refuse(node, "it quantizes to no integer type")
    half = 2 ** (kind.bitwidth - 1)
    return (-half, half - 1) if kind.is_signed() else (0, 2 * half - 1)


def _summed(tape: Tape, node: ir.Node, value: ir.Value, scale: ir.Value) -> ir.Value:
    """The gradient of a scale: over all that it multiplies."""
    rank = len(tape.sizes(node, node.inputs[0]))
    sizes = tape.known(node, scale)
    axis = node.attributes.get_int("axis", 1) % max(rank, 1)
    axes = [at for at in range(rank) if at != axis or not sizes or sizes == (1,)]
    found = tape.op("ReduceSum", value, tape.integers(*axes), keepdims=0) if axes else value
    return tape.op("Reshape", found, tape.integers(1)) if sizes == (1,) else found


RULES: Table = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
