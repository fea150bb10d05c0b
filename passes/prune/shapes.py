"""Rules of the operators that move channels, or lay them out anew."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import constant_value, rank, static_dims
from passes.prune.classes import ChannelAxis
from passes.prune.tracing import NotFollowed, Traced, tiled

FREE_BATCH = 2  # a stand-in for a batch of any size
MOST_NUMBERS = 2**24  # of one value

Result = list[ChannelAxis | None]


def transpose(node: ir.Node, found: Traced) -> Result:
    """Channels go to where the permutation puts their axis."""
    source, axes = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is None:
        return [None]
    if axes is None:
        raise NotFollowed("the shape of its input is unknown")
    place = list(node.attributes.get_ints("perm", range(axes)[::-1])).index(source.axis)
    return [ChannelAxis(axis=_behind_batch(place), atoms=source.atoms)]


def flatten(node: ir.Node, found: Traced) -> Result:
    """Each channel becomes as many features as it has positions."""
    source = found.axis_of(node.inputs[0])
    if source is None:
        return [None]
    axis = node.attributes.get_int("axis", 1)
    shape = _shape(node)
    return [_laid_out(source, shape, (math.prod(shape[:axis]), -1))]


def squeeze(node: ir.Node, found: Traced) -> Result:
    """Squeeze and Unsqueeze: axes of one number go or come."""
    source = found.axis_of(node.inputs[0])
    if source is None:
        return [None]
    shape, target = _shape(node), static_dims(node.outputs[0], 1)
    if target is None:
        raise NotFollowed("the shape of its output is unknown")
    return [_laid_out(source, shape, (shape[0], *target))]


def reshape(node: ir.Node, found: Traced) -> Result:
    """Followed where every index along one axis of the result belongs to one channel."""
    source, target = found.axis_of(node.inputs[0]), constant_value(node.inputs[1])
    if source is None:
        return [None]
    if target is None or node.attributes.get_int("allowzero", 0) != 0:
        raise NotFollowed("the shape that it gives is computed by the graph")
    sizes = [int(size) for size in target.reshape(-1)]
    if rank(node.inputs[0]) == source.axis + 1 and len(sizes) > 1 and sizes[-1] == len(source.atoms):
        found.count(node, 1, len(sizes) - 1, source.atoms)  # tokens: whatever lies before the channels stays apart
        return [ChannelAxis(axis=len(sizes) - 1, atoms=source.atoms)]
    shape = _shape(node)
    if any(size == 0 and index >= len(shape) for index, size in enumerate(sizes)):
        raise NotFollowed("the shape that it gives does not fit")
    result = _laid_out(source, shape, [size or shape[index] for index, size in enumerate(sizes)])
    copied = [index for index, size in enumerate(sizes) if size == 0]
    if result.axis != source.axis and {result.axis, source.axis} & set(copied):
        raise NotFollowed("it copies the number of channels to another axis")
    if sizes[result.axis] > 0:
        found.count(node, 1, result.axis, result.atoms)
    return [result]


def reduce(node: ir.Node, found: Traced) -> Result:
    """Means, sums and maxima over other axes than that of the channels."""
    source, count = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is None:
        return [None]
    axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None or count is None or not axes.size:
        raise NotFollowed("it reduces over all axes, or over ones that the graph computes")
    gone = {int(axis) % count for axis in axes.reshape(-1)}
    if source.axis in gone:
        raise NotFollowed("it reduces over the channels")
    before = 0 if node.attributes.get_int("keepdims", 1) else sum(axis < source.axis for axis in gone)
    return [ChannelAxis(axis=_behind_batch(source.axis - before), atoms=source.atoms)]


def pad(node: ir.Node, found: Traced) -> Result:
    """Channels that are added hold a constant; they go along with what they are added to."""
    source, amounts, count = found.axis_of(node.inputs[0]), constant_value(node.inputs[1]), rank(node.inputs[0])
    if source is None:
        return [None]
    if amounts is None or count is None:
        raise NotFollowed("how much it pads is computed by the graph")
    axes = _axes(node, 3, count)
    if source.axis not in axes:
        return [source]
    first = axes.index(source.axis)
    last = first + len(axes)
    low, high = int(amounts[first]), int(amounts[last])
    if not low and not high:
        return [source]
    if low < 0 or high < 0 or node.attributes.get_string("mode", "constant") != "constant":
        raise NotFollowed("it repeats channels, or crops them")
    before, after = found.classes.new(low), found.classes.new(high)
    found.count(node, 1, first, before)
    found.count(node, 1, last, after)
    return [ChannelAxis(axis=source.axis, atoms=np.concatenate([before, source.atoms, after]))]


def resize(node: ir.Node, found: Traced) -> Result:
    """Of positions, not of channels."""
    source, count = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is None:
        return [None]
    if count is None or node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NotFollowed("it may crop channels")
    axes = list(node.attributes.get_ints("axes", range(count)))
    axes = [axis % count for axis in axes]
    if source.axis not in axes:
        return [source]
    place, scales, sizes = axes.index(source.axis), _given(node, 2), _given(node, 3)
    if scales is not None and scales.size and scales[place] == 1:
        return [source]
    if sizes is not None and sizes.size and sizes[place] == len(source.atoms):
        found.count(node, 3, place, source.atoms)
        return [source]
    raise NotFollowed("it resizes the channels, or by what the graph computes")


def slice_(node: ir.Node, found: Traced) -> Result:
    """A range of channels, or of other axes."""
    source, count = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is None:
        return [None]
    starts, ends, steps = _given(node, 1), _given(node, 2), _given(node, 4)
    if starts is None or ends is None or count is None or (steps is None and _has(node, 4)):
        raise NotFollowed("the range that it takes is computed by the graph")
    axes = _axes(node, 3, count, len(starts))
    if source.axis not in axes:
        return [source]
    place = axes.index(source.axis)
    if steps is not None and steps[place] != 1:
        raise NotFollowed("it leaves channels out in between")
    begin, end, _ = slice(int(starts[place]), int(ends[place])).indices(len(source.atoms))
    if begin >= end:
        raise NotFollowed("it takes no channel")
    found.count(node, 1, place, source.atoms[:begin], among=source.atoms)
    found.count(node, 2, place, source.atoms[:end], among=source.atoms)
    return [ChannelAxis(axis=source.axis, atoms=source.atoms[begin:end])]


def split(node: ir.Node, found: Traced) -> Result:
    """Several ranges of channels, or of other axes."""
    source, count = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is None:
        return [None]
    if count is None or node.attributes.get_int("axis", 0) % count != source.axis:
        return [source] * len(node.outputs)
    sizes = _given(node, 1)
    if sizes is None:
        raise NotFollowed("it splits the channels into equal parts")
    parts = np.split(source.atoms, np.cumsum(sizes)[:-1])
    for index, part in enumerate(parts):
        found.count(node, 1, index, part)
    return [ChannelAxis(axis=source.axis, atoms=part) for part in parts]


def _laid_out(source: ChannelAxis, shape: Sequence[int], target: Sequence[int]) -> ChannelAxis:
    """The channels of a value of `shape` once its numbers lie in the shape `target`."""
    try:
        numbers = tiled(source, shape).reshape([int(size) for size in target])
    except ValueError:
        raise NotFollowed("the shape that it gives holds for one batch alone") from None
    for axis in range(1, numbers.ndim):
        line = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)[:, 0]
        inner = [1] * numbers.ndim
        inner[axis] = -1
        if (numbers == line.reshape(inner)).all():
            return ChannelAxis(axis=axis, atoms=line.copy())
    raise NotFollowed("it mixes channels with other axes")


def _shape(node: ir.Node) -> tuple[int, ...]:
    """Of the node's input, with a stand-in for an open batch."""
    value, rest = node.inputs[0], static_dims(node.inputs[0], 1)
    if value is None or value.shape is None or rest is None:
        raise NotFollowed("the shape of its input is unknown")
    batch = value.shape[0]
    shape = (batch if isinstance(batch, int) else FREE_BATCH, *rest)
    if not 0 < math.prod(shape) <= MOST_NUMBERS:
        raise NotFollowed("its input is too large to follow")
    return shape


def _behind_batch(axis: int) -> int:
    if axis < 1:
        raise NotFollowed("it puts the channels in the place of the batch")
    return axis


def _has(node: ir.Node, slot: int) -> bool:
    return slot < len(node.inputs) and node.inputs[slot] is not None


def _given(node: ir.Node, slot: int) -> NDArray[Any] | None:
    """(n,) a constant input; None where it is absent, or computed by the graph."""
    array = constant_value(node.inputs[slot]) if _has(node, slot) else None
    return None if array is None else array.reshape(-1)


def _axes(node: ir.Node, slot: int, count: int, listed: int | None = None) -> list[int]:
    """The axes that an optional input names; the first ones where it is absent."""
    if not _has(node, slot):
        return list(range(count if listed is None else listed))
    axes = _given(node, slot)
    if axes is None:
        raise NotFollowed("its axes are computed by the graph")
    return [int(axis) % count for axis in axes]
