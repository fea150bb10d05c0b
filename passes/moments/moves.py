"""Where movements (Reshape, Transpose, ...) take the channels: they are run on an array of channel indices."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
from jaxtyping import Int
from numpy.typing import NDArray

from passes.graph.editing import constant_value, name_of, static_dims
from passes.graph.operators import MOVEMENTS
from passes.moments.spread import Spread

# GatherElements and GatherND index the batch too, whose size is free here; Identity is a function (`rules`).
MOVES = MOVEMENTS - {"GatherElements", "GatherND", "Identity"}
FREE_BATCH = 2  # a stand-in for a batch of any size
MOST_LABELS = 2**26  # numbers of one value


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSpread:
    """The spread of a value whose channels do not lie along axis 1, as inside a channel shuffle.

    labels: of the value's shape: the channel of `spread` that each number belongs to.
    """

    spread: Spread
    labels: Int[NDArray[np.int64], "..."]


def spread_of_move(node: ir.Node, source: Spread | LabelledSpread) -> tuple[Spread | LabelledSpread | None, ...]:
    """The spreads of the outputs of `node`, one of MOVES, whose first input has the spread `source`.

    None where a shape or an index is not constant, or holds for one batch size alone, other than FREE_BATCH.
    """
    unknown = (None,) * len(node.outputs)
    if not isinstance(source, LabelledSpread):
        labels = _labels(node.inputs[0], len(source.points))
        if labels is None:
            return unknown
        source = LabelledSpread(spread=source, labels=labels)
    constants = [constant_value(value) for value in node.inputs[1:] if value is not None]
    if any(constant is None for constant in constants) or _numbers(node, source.labels, constants) > MOST_LABELS:
        return unknown
    try:
        results = _run(node, [source.labels, *constants])
    except (ValueError, IndexError, RuntimeError):
        return unknown
    if not all(result.size for result in results):
        return unknown
    return tuple(
        _by_channel(LabelledSpread(spread=source.spread, labels=labels), name_of(value))
        for value, labels in zip(node.outputs, results, strict=True)
    )


def spread_of_concat(node: ir.Node, sources: list[Spread | LabelledSpread | None]) -> Spread | LabelledSpread | None:
    """The spread of the output of a Concat along any axis; None where that of an input is None."""
    parts: list[LabelledSpread] = []
    for value, source in zip(node.inputs, sources, strict=True):
        if isinstance(source, Spread):
            labels = _labels(value, len(source.points))
            source = None if labels is None else LabelledSpread(spread=source, labels=labels)
        if source is None:
            return None
        parts.append(source)
    points = [part.spread.points for part in parts]
    starts = np.cumsum([0, *(len(each) for each in points[:-1])])
    spread = Spread(
        points=np.concatenate(points),
        origin=name_of(node.outputs[0]),
        approximate=any(part.spread.approximate for part in parts),
    )
    try:
        labels = np.concatenate(
            [part.labels + start for part, start in zip(parts, starts, strict=True)], node.attributes.get_int("axis", 0)
        )
    except ValueError:  # a free batch that was merged with another axis: the sizes here are not those at run time
        return None
    return _by_channel(LabelledSpread(spread=spread, labels=labels), spread.origin)


def along_channels(value: LabelledSpread, origin: str) -> Spread:
    """A spread along axis 1: at each index normal, with the mean and deviation of all channels that have numbers there.

    origin: the name for the new normal variable.
    """
    axes = tuple(axis for axis in range(value.labels.ndim) if axis != 1)
    mean, square = value.spread.mean, np.square(value.spread.mean) + np.square(value.spread.std)
    mean, square = mean[value.labels].mean(axis=axes), square[value.labels].mean(axis=axes)
    std = np.sqrt(np.maximum(square - np.square(mean), 0))
    return Spread.normal(mean, std, origin=origin, approximate=True)


def _labels(value: ir.Value | None, channels: int) -> Int[NDArray[np.int64], "n {channels} ..."] | None:
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    batch, rest = value.shape[0], static_dims(value, 2)
    if rest is None or value.shape[1] != channels:
        return None
    shape = (batch if isinstance(batch, int) else FREE_BATCH, channels, *rest)
    if min(shape) < 1 or math.prod(shape) > MOST_LABELS:
        return None
    numbers = np.arange(channels).reshape(1, channels, *(1,) * len(rest))
    return np.array(np.broadcast_to(numbers, shape))


def _numbers(node: ir.Node, labels: NDArray[np.int64], constants: list[Any]) -> int:
    """How many numbers the node makes of the labels at most."""
    match node.op_type:
        case "Tile":
            times = math.prod(map(int, constants[0].reshape(-1)))
        case "Expand":
            times = math.prod(max(int(size), 1) for size in constants[0].reshape(-1))
        case "Gather":
            times = constants[0].size
        case _:
            times = 1
    return labels.size * times


def _run(node: ir.Node, arrays: list[Any]) -> list[Int[NDArray[np.int64], "..."]]:
    """The outputs of the node by ONNX's reference evaluator."""
    assert isinstance(node.graph, ir.Graph)
    proto = ir.to_proto(node)
    opset = onnx.helper.make_opsetid("", node.graph.opset_imports[""])
    names = [name for name in proto.input if name]
    graph = onnx.helper.make_graph(
        [proto],
        "moves",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in dict.fromkeys(names)],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in proto.output],
    )
    evaluator = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=[opset]))
    return list(evaluator.run(None, dict(zip(names, arrays, strict=True))))


def _by_channel(value: LabelledSpread, origin: str) -> Spread | LabelledSpread:
    """A Spread, where axis 1 alone tells the channel; of the new `origin` where channels changed places."""
    labels, spread = value.labels, value.spread
    if labels.ndim < 2 or 0 in labels.shape:
        return value
    column = labels[0].reshape(labels.shape[1], -1)[:, 0]
    if not np.array_equal(labels, np.broadcast_to(column.reshape(1, -1, *(1,) * (labels.ndim - 2)), labels.shape)):
        return value
    if np.array_equal(column, np.arange(len(spread.points))):
        return spread
    return Spread(points=spread.points[column], origin=origin, approximate=spread.approximate)
