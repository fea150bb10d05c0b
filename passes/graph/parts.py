"""What a Concat put together in an output: the boxes and the scores of a detector."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TypeVar

import onnx_ir as ir

from passes.graph.editing import is_op

Array = TypeVar("Array")  # of numpy or of torch
_SAME = ("Identity", "Clip", "Cast")
_SHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_NESTED, _MOST = 6, 1000  # Concats of Concats, and parts: files of strangers have chains and fans of thousands


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts lie in a tensor. sizes: of each along the axis, in order."""

    axis: int
    sizes: tuple[int, ...]

    def of(self, array: Array) -> Sequence[Array]:
        """The parts, views of the array; the whole where it is not as large as they are."""
        shape: tuple[int, ...] = tuple(array.shape)  # type: ignore[attr-defined]
        if self.axis >= len(shape) or shape[self.axis] != sum(self.sizes):
            return (array,)
        ends = accumulate(self.sizes)
        before = (slice(None),) * self.axis
        return [
            array[(*before, slice(end - size, end))]  # type: ignore[index]
            for end, size in zip(ends, self.sizes, strict=True)
        ]


def parts_of(value: ir.Value) -> Parts | None:
    """Where the parts of a value lie that a Concat put together, and others at most moved; None where none did.

    They are answers of their own: noise that is small beside boxes of some hundred pixels may be all that there is of
    scores between 0 and 1. Of a Concat of several that are put together alike (the levels of a detector) it is their
    parts. Shapes have to be inferred.
    """
    return _parts(value, _NESTED, {})


def split_into(array: Array, parts: Parts | None) -> Sequence[Array]:
    """`Parts.of`, or the whole where there are none."""
    return (array,) if parts is None else parts.of(array)


def _parts(value: ir.Value, nested: int, known: dict[tuple[ir.Value, int], Parts | None]) -> Parts | None:
    """known: what was found before, however often a Concat reads it."""
    if (value, nested) not in known:
        known[value, nested] = _found(value, nested, known)
    return known[value, nested]


def _found(value: ir.Value, nested: int, known: dict[tuple[ir.Value, int], Parts | None]) -> Parts | None:
    moved: list[ir.Node] = []
    node = value.producer()
    while node is not None and is_op(node, *_SAME, *_SHAPES, "Transpose") and node.inputs[0] is not None:
        moved.append(node)
        node = node.inputs[0].producer()
    found = _of_concat(node, nested - 1, known) if node is not None and is_op(node, "Concat") and nested else None
    for node in reversed(moved):
        found = None if found is None else _moved(found, node)
    return found


def _of_concat(node: ir.Node, nested: int, known: dict[tuple[ir.Value, int], Parts | None]) -> Parts | None:
    shape = node.outputs[0].shape
    if shape is None or not len(shape) or any(value is None or value.shape is None for value in node.inputs):
        return None
    axis = node.attributes.get_int("axis", 0) % len(shape)
    inner = [_parts(value, nested, known) for value in node.inputs if value is not None]
    if (first := inner[0]) is not None and first.axis != axis and all(parts == first for parts in inner):
        return first
    sizes: list[int] = []
    for value, parts in zip(node.inputs, inner, strict=True):
        size = value.shape[axis] if value is not None and value.shape is not None else None
        if not isinstance(size, int):
            return None
        sizes.extend(parts.sizes if parts is not None and parts.axis == axis else (size,))
        if len(sizes) > _MOST:
            return None
    return Parts(axis=axis, sizes=tuple(sizes))


def _moved(parts: Parts, node: ir.Node) -> Parts | None:
    """Where the parts lie behind a node that moves them."""
    if is_op(node, *_SAME):
        return parts
    given, made = node.inputs[0], node.outputs[0]
    if given is None or given.shape is None or made.shape is None:
        return None
    if is_op(node, "Transpose"):
        order = node.attributes.get_ints("perm", range(len(given.shape))[::-1])
        return Parts(axis=list(order).index(parts.axis), sizes=parts.sizes)
    axis = _axis_behind(list(given.shape), list(made.shape), parts.axis)
    return None if axis is None else Parts(axis=axis, sizes=parts.sizes)


def _axis_behind(given: list[object], made: list[object], axis: int) -> int | None:
    """The axis of the reshaped tensor that goes through the same numbers; None where none does, or nobody can tell."""
    same = 0  # leading sizes, of which the first may be open: the batch, whatever it is called
    while same < min(len(given), len(made)) and (given[same] == made[same] or (same == 0 and _both_open(given, made))):
        same += 1
    if axis < same:
        return axis
    around = _product(given[same:axis]), _product(given[axis + 1 :])
    if None in around:
        return None
    # its size need not be known: what the others leave is that of the axis
    places = range(same, len(made))
    return next((one for one in places if (_product(made[same:one]), _product(made[one + 1 :])) == around), None)


def _both_open(given: list[object], made: list[object]) -> bool:
    return not isinstance(given[0], int) and not isinstance(made[0], int)


def _product(sizes: Sequence[object]) -> int | None:
    """None where one of them is open."""
    numbers = [size for size in sizes if isinstance(size, int)]
    return prod(numbers) if len(numbers) == len(sizes) else None
