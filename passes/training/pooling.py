"""Pools and reductions."""

import numpy as np
import onnx_ir as ir

from passes.training.convolution import scattered, window_of
from passes.training.tape import Gradients, Outputs, Table, Tape, axes_of, count_of


def _average_pool(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Each output's share goes to every cell of its window: a transposed convolution with ones, channel by channel."""
    g, x, y = given[0], node.inputs[0], node.outputs[0]
    assert g is not None and x is not None

    def of_input() -> ir.Value:
        channels, *large = tape.known(node, x, 1)
        small = tape.known(node, y, 2)
        kernel = node.attributes.get_ints("kernel_shape", [])
        window = window_of(tape, node, kernel, large, small)
        rest = window.rest(large, small)
        if min(rest) < 0:
            raise tape.refuse(node, "its last window reaches beyond the pads (ceil_mode)")
        if node.attributes.get_int("count_include_pad", 0):
            cells = np.full(small, count_of(kernel), np.float32)
        else:
            cells = np.ones((), np.float32)
            for axis, size in enumerate(large):
                first = np.arange(small[axis]) * window.strides[axis] - window.begin[axis]
                taps = first[:, None] + np.arange(kernel[axis]) * window.dilations[axis]
                cells = np.multiply.outer(cells, ((taps >= 0) & (taps < size)).sum(1).astype(np.float32))
        ones = tape.constant(np.ones((channels, 1, *kernel), np.float32))
        share = tape.op("Div", g, tape.constant(cells[None, None]))
        return scattered(tape, share, ones, window, rest, channels)

    return (of_input,)


def _max_pool(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """What comes back goes to the place of each maximum: the first, where several are as large."""
    g, x = given[0], node.inputs[0]
    assert g is not None and x is not None
    if node.attributes.get_int("storage_order", 0):
        raise tape.refuse(node, "it counts places column by column")

    def of_input() -> ir.Value:
        attributes = {key: value.value for key, value in node.attributes.items()}
        places = tape.outputs("MaxPool", x, count=2, **attributes)[1]
        flat = tape.integers(-1)
        empty = tape.op("Expand", tape.constant(0.0), tape.op("Reshape", tape.op("Size", x), tape.integers(1)))
        filled = tape.op(
            "ScatterElements",
            empty,
            tape.op("Reshape", places, flat),
            tape.op("Reshape", g, flat),
            axis=0,
            reduction="add",
        )
        return tape.shaped_as(filled, x)

    return (of_input,)


def _mean_or_sum(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, x = given[0], node.inputs[0]
    assert g is not None and x is not None

    def of_input() -> ir.Value:
        spread, axes = _kept(tape, node, g)
        if node.op_type != "ReduceSum":
            sizes = tape.sizes(node, x)
            known = [size for axis in axes if (size := sizes[axis]) is not None]
            if len(known) < len(axes):
                raise tape.refuse(node, "it averages over an axis of free size; give that with --input-shape")
            spread = tape.op("Mul", spread, tape.constant(1 / count_of(known)))
        return tape.repeated_to(spread, x)

    return (of_input,)


def _extreme(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Those that are as large as the maximum share what comes back."""
    g, x = given[0], node.inputs[0]
    assert g is not None and x is not None

    def of_input() -> ir.Value:
        spread, axes = _kept(tape, node, g)
        peak, _ = _kept(tape, node, node.outputs[0])
        hit = tape.op("Cast", tape.op("Equal", x, peak), to=int(ir.DataType.FLOAT))
        share = tape.op("Div", spread, tape.op("ReduceSum", hit, tape.integers(*axes), keepdims=1))
        return tape.op("Mul", hit, share)

    return (of_input,)


def _kept(tape: Tape, node: ir.Node, value: ir.Value) -> tuple[ir.Value, tuple[int, ...]]:
    """A value in the shape of the output with the reduced axes of size 1, and those axes."""
    if node.op_type.startswith("Global"):
        return value, tuple(range(2, len(tape.sizes(node, node.inputs[0]))))
    axes = axes_of(tape, node)
    if node.attributes.get_int("keepdims", 1):
        return value, axes
    return tape.op("Unsqueeze", value, tape.integers(*axes)), axes


RULES: Table = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _mean_or_sum,
    "GlobalMaxPool": _extreme,
    "MaxPool": _max_pool,
    "ReduceMax": _extreme,
    "ReduceMean": _mean_or_sum,
    "ReduceMin": _extreme,
    "ReduceSum": _mean_or_sum,
}
