"""Normalizations as at inference: the statistics of a BatchNormalization stay."""

import onnx_ir as ir

from passes.training.tape import Gradients, Outputs, Table, Tape, count_of, present


def _batch_norm(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, (x, scale, _, mean, variance) = given[0], node.inputs
    if node.attributes.get_int("training_mode", 0):
        raise tape.refuse(node, "it is in training mode")
    assert g is not None and x is not None
    spatial = range(2, len(tape.sizes(node, x)))

    def channels(value: ir.Value | None) -> ir.Value:
        return (
            tape.op("Unsqueeze", value, tape.integers(*(axis - 1 for axis in spatial))) if spatial else present(value)
        )

    def rate() -> ir.Value:
        steady = tape.op("Add", variance, tape.constant(node.attributes.get_float("epsilon", 1e-5)))
        return tape.op("Reciprocal", tape.op("Sqrt", steady))

    def summed(value: ir.Value) -> ir.Value:
        return tape.op("ReduceSum", value, tape.integers(0, *spatial), keepdims=0)

    return (
        lambda: tape.op("Mul", g, channels(tape.op("Mul", scale, rate()))),
        lambda: tape.op("Mul", summed(tape.op("Mul", g, tape.op("Sub", x, channels(mean)))), rate()),
        lambda: summed(g),
    )


def _layer_norm(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """dx = (h - mean(h) - n mean(h n)) / σ, with h = g γ and n = (x - mean) / σ over the axes from `axis` on."""
    g, x, scale = given[0], node.inputs[0], node.inputs[1]
    assert g is not None and x is not None
    rank = len(tape.sizes(node, x))
    first = node.attributes.get_int("axis", -1) % rank
    axes = tape.integers(*range(first, rank))
    count = tape.constant(1 / count_of(tape.known(node, x, first)))

    def mean(value: ir.Value) -> ir.Value:
        return tape.op("Mul", tape.op("ReduceSum", value, axes, keepdims=1), count)

    def normalized() -> tuple[ir.Value, ir.Value]:
        centred = tape.op("Sub", x, mean(x))
        steady = tape.op("Add", mean(tape.op("Mul", centred, centred)), tape.constant(_epsilon(node)))
        deviation = tape.op("Sqrt", steady)
        return tape.op("Div", centred, deviation), deviation

    def of_input() -> ir.Value:
        unit, deviation = normalized()
        scaled = tape.op("Mul", g, scale)
        along = tape.op("Mul", unit, mean(tape.op("Mul", scaled, unit)))
        return tape.op("Div", tape.op("Sub", tape.op("Sub", scaled, mean(scaled)), along), deviation)

    return (
        of_input,
        lambda: tape.sum_to(tape.op("Mul", g, normalized()[0]), node, scale),
        lambda: tape.sum_to(g, node, node.inputs[2]),
    )


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon", 1e-5)


RULES: Table = {"BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm}
