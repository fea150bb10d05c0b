"""A rule for each operator: where the channels of its outputs lie, what it unites, and what it holds of channels."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from passes.graph.editing import constant_value, is_constant, name_of, rank
from passes.graph.operators import ELEMENTWISE, POINTWISE
from passes.prune.classes import ChannelAxis
from passes.prune.layers import conv, conv_transpose, gemm, matmul
from passes.prune.shapes import flatten, pad, reduce, reshape, resize, slice_, split, squeeze, transpose
from passes.prune.tracing import NotFollowed, Traced

Rule = Callable[[ir.Node, Traced], Sequence[ChannelAxis | None]]

POOLING = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool")
REDUCING = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")


def _same(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Each number by itself: channels stay where they are."""
    return [found.axis_of(node.inputs[0])]


def _pool(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    source = found.axis_of(node.inputs[0])
    if source is not None and source.axis != 1:
        raise NotFollowed("it pools over the channels")
    if any(tuple(value.uses()) or value.is_graph_output() for value in node.outputs[1:]):
        raise NotFollowed("its indices count channels")
    return [source]


def _normalize(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """BatchNormalization and InstanceNormalization: parameters for each channel."""
    source, slots = found.axis_of(node.inputs[0]), range(1, len(node.inputs))
    if source is None:
        return [None]
    if source.axis != 1 or node.attributes.get_int("training_mode", 0) != 0:
        raise NotFollowed("it normalizes over more than a channel")
    if any(not is_constant(node.inputs[slot]) for slot in slots):
        raise NotFollowed("its parameters are computed by the graph")
    for slot in slots:
        found.hold(node, slot, 0, source.atoms)
    return [source]


def _softmax(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    source, axes = found.axis_of(node.inputs[0]), rank(node.inputs[0])
    if source is not None and (axes is None or node.attributes.get_int("axis", -1) % axes == source.axis):
        raise NotFollowed("it normalizes over the channels")
    return [source]


def _together(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Operators that combine tensors number by number: a sum of branches unites their channels, and so does a gate."""
    axes = rank(node.outputs[0])
    known = {slot: axis for slot, value in enumerate(node.inputs) if (axis := found.axis_of(value)) is not None}
    if not known:
        return [None]
    ranks = [rank(value) for value in node.inputs]
    if axes is None or None in ranks:
        raise NotFollowed("the shapes of what it combines are unknown")
    shifts = [axes - (each or 0) for each in ranks]  # by which broadcasting moves each input's axes
    if len(places := {axis.axis + shifts[slot] for slot, axis in known.items()}) > 1:
        raise NotFollowed("it combines channels of different axes")
    (place,) = places
    size = max(len(axis.atoms) for axis in known.values())
    first = next(axis.atoms for axis in known.values() if len(axis.atoms) == size)
    for slot, value in enumerate(node.inputs):
        own = place - shifts[slot]
        constant = constant_value(value)
        if constant is None:
            if own < 0 or (slot not in known and _is_one(value, own)):
                continue
            atoms = found.along(node, value, own)
            if len(atoms) == size:
                found.classes.unite(first, atoms)
            elif len(atoms) > 1:
                raise NotFollowed("what it combines differs in channels")
        elif own >= 0 and constant.shape[own] == size > 1:
            found.hold(node, slot, own, first)
        elif own >= 0 and constant.shape[own] != 1:
            raise NotFollowed("what it combines differs in channels")
    return [ChannelAxis(axis=place, atoms=first)]


def _is_one(value: ir.Value | None, axis: int) -> bool:
    return value is not None and value.shape is not None and value.shape[axis] == 1


def _concat(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    axes = {known.axis for value in node.inputs if (known := found.axis_of(value)) is not None}
    if not axes:
        return [None]
    if len(axes) > 1 or (count := rank(node.outputs[0])) is None:
        raise NotFollowed("it joins channels of different axes")
    (axis,) = axes
    parts = [found.along(node, value, axis) for value in node.inputs]
    if node.attributes.get_int("axis", 0) % count == axis:
        return [ChannelAxis(axis=axis, atoms=np.concatenate(parts))]
    if len({len(part) for part in parts}) > 1:
        raise NotFollowed(f"the parts of {name_of(node.outputs[0])!r} differ in channels")
    for part in parts[1:]:
        found.classes.unite(parts[0], part)
    return [ChannelAxis(axis=axis, atoms=parts[0])]


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE | {"Abs", "Cast", "Clip", "Dropout", "Identity"}, _same),
    **dict.fromkeys(POOLING, _pool),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalize),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _softmax),
    **dict.fromkeys(ELEMENTWISE | {"Max", "Min", "PRelu", "Pow", "Sum"}, _together),
    "Concat": _concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    **dict.fromkeys(REDUCING, reduce),
    "Flatten": flatten,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "Unsqueeze": squeeze,
}
