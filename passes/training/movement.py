"""Operators that move numbers: their gradients move them back."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.training.tape import Gradients, Outputs, Table, Tape


def _reshape(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    g, x = given[0], node.inputs[0]
    assert g is not None and x is not None
    return (lambda: tape.shaped_as(g, x),)


def _transpose(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    rank = len(tape.sizes(node, node.inputs[0]))
    order = node.attributes.get_ints("perm", list(reversed(range(rank))))
    return (lambda: tape.op("Transpose", given[0], perm=np.argsort(order).tolist()),)


def _expand(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g = given[0]
    assert g is not None
    return (lambda: tape.sum_to(g, node, node.inputs[0]),)


def _concat(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Each input its part of the axis."""
    g, rank = given[0], len(tape.sizes(node, node.outputs[0]))
    axis = node.attributes.get_int("axis", 0) % rank
    widths = [tape.known(node, value, axis)[0] for value in node.inputs]
    ends = np.cumsum(widths).tolist()

    def part(start: int, end: int) -> ir.Value:
        return tape.op("Slice", g, tape.integers(start), tape.integers(end), tape.integers(axis))

    return [
        lambda start=end - width, end=end: part(start, end)  # type: ignore[misc]
        for width, end in zip(widths, ends, strict=True)
    ]


def _split(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Parts that nothing reads come back as zeros."""

    def of_input() -> ir.Value:
        parts = [
            tape.repeated_to(tape.constant(0.0), value) if g is None else g
            for g, value in zip(given, node.outputs, strict=True)
        ]
        return tape.op("Concat", *parts, axis=node.attributes.get_int("axis", 0))

    return (of_input,)


def _slice(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    x, g = node.inputs[0], given[0]
    assert g is not None

    def of_input() -> ir.Value:
        sizes = tape.sizes(node, x)
        starts, ends = (_given(tape, node, slot, name) for slot, name in ((1, "starts"), (2, "ends")))
        named = tape.numbers(node, 3, "axes")
        axes = np.arange(starts.size) if named is None else named.reshape(-1)
        stride = tape.numbers(node, 4)
        steps = np.ones(starts.size, np.int64) if stride is None else stride.reshape(-1)
        found = g
        shape: list[int | None] = list(tape.sizes(node, node.outputs[0]))
        cuts = (part.tolist() for part in (starts, ends, axes % len(sizes), steps))
        for start, end, axis, step in zip(*cuts, strict=True):
            size = sizes[axis]
            if size is None:
                raise tape.refuse(node, "it cuts an axis of free size")
            places = np.arange(size)[slice(start, _end(end, step, size), step)]
            found = _placed(tape, found, shape, axis, places, size)
            shape[axis] = size
        return found

    return (of_input,)


def _end(end: int, step: int, size: int) -> int | None:
    """Of a Python slice: ONNX writes "to the front" as an end before the axis."""
    return None if step < 0 and end < -size else end


def _given(tape: Tape, node: ir.Node, slot: int, name: str) -> NDArray[np.generic]:
    found = tape.numbers(node, slot, name)
    if found is None:
        raise tape.refuse(node, f"it has no {name}")
    return found.reshape(-1)


def _placed(
    tape: Tape, value: ir.Value, shape: Sequence[int | None], axis: int, places: NDArray[np.intp], size: int
) -> ir.Value:
    """`value`, of this shape, at these places of an axis that is `size` long; zero elsewhere, sums where they meet."""
    rank, count = len(shape), len(places)
    if count and np.array_equal(places, np.arange(places[0], places[0] + count)):
        if count == size:
            return value
        before, after = [0] * rank, [0] * rank
        before[axis], after[axis] = int(places[0]), size - count - int(places[0])
        return tape.op("Pad", value, tape.integers(*before, *after))
    turned = [1] * rank
    turned[axis] = count
    index = tape.op("Expand", tape.constant(places.reshape(turned), np.int64), tape.op("Shape", value))
    before, after = [0] * rank, [0] * rank
    after[axis] = size - count
    if size >= count:
        empty = tape.op("Mul", tape.op("Pad", value, tape.integers(*before, *after)), tape.constant(0.0))
    else:
        first = tape.op("Slice", value, tape.integers(0), tape.integers(size), tape.integers(axis))
        empty = tape.op("Mul", first, tape.constant(0.0))
    return tape.op("ScatterElements", empty, index, value, axis=axis, reduction="add")


def _gather(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, x = given[0], node.inputs[0]
    assert g is not None

    def of_input() -> ir.Value:
        indices = tape.numbers(node, 1)
        sizes = tape.sizes(node, x)
        axis = node.attributes.get_int("axis", 0) % len(sizes)
        size = sizes[axis]
        if indices is None or indices.ndim > 1 or size is None:
            raise tape.refuse(node, "it gathers along a free axis, or by more than a list of indices")
        spread = g if indices.ndim else tape.op("Unsqueeze", g, tape.integers(axis))
        places = np.asarray(indices.reshape(-1), np.intp) % size
        shape = [*sizes[:axis], places.size, *sizes[axis + 1 :]]
        return _placed(tape, spread, shape, axis, places, size)

    return (of_input,)


def _pad(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, rank = given[0], len(tape.sizes(node, node.inputs[0]))

    def of_input() -> ir.Value:
        pads = _given(tape, node, 1, "pads")
        named = tape.numbers(node, 3)
        axes = np.arange(rank) if named is None else named.reshape(-1) % rank
        if node.attributes.get_string("mode", "constant") != "constant" or pads.min() < 0:
            raise tape.refuse(node, "it repeats numbers of its input, or cuts them away")
        before, after = pads[: axes.size], pads[axes.size :]
        used = [place for place in range(axes.size) if before[place] or after[place]]
        if not used:
            assert g is not None
            return g
        ends = [-int(after[place]) if after[place] else np.iinfo(np.int64).max for place in used]
        starts = tape.integers(*(int(before[place]) for place in used))
        return tape.op("Slice", g, starts, tape.integers(*ends), tape.integers(*(int(axes[place]) for place in used)))

    return (of_input,)


def _depth_to_space(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    other = {"DepthToSpace": "SpaceToDepth", "SpaceToDepth": "DepthToSpace"}[node.op_type]
    if node.attributes.get_string("mode", "DCR") != "DCR":
        raise tape.refuse(node, "its mode is CRD")
    return (lambda: tape.op(other, given[0], blocksize=node.attributes.get_int("blocksize", 1)),)


def _resize(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Nearest, by whole numbers: every cell became a block, whose gradients add up."""
    g, x = given[0], node.inputs[0]

    def of_input() -> ir.Value:
        large, small = tape.known(node, node.outputs[0], 1), tape.known(node, x, 1)
        factors = [a // b for a, b in zip(large, small, strict=True)]
        whole = all(a == b * f for a, b, f in zip(large, small, factors, strict=True)) and factors[0] == 1
        if not whole or not _makes_blocks(node, max(factors)):
            raise tape.refuse(node, "only enlarging by whole numbers to the nearest is differentiated")
        mean = tape.op("AveragePool", g, kernel_shape=factors[1:], strides=factors[1:])
        return tape.op("Mul", mean, tape.constant(float(np.prod(factors))))

    return (of_input,)


def _makes_blocks(node: ir.Node, factor: int) -> bool:
    if node.attributes.get_string("mode", "nearest") != "nearest":
        return False
    where = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if where == "asymmetric":
        return rounding == "floor" or (rounding == "round_prefer_floor" and factor <= 2)
    return where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round")


RULES: Table = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _depth_to_space,
    "Split": _split,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
