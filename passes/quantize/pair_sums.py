"""Weights on which no x86-64 processor saturates: `within_pair_sums` chooses them, `greatest_pair_sum` measures a file.

On processors without VNNI the kernels that multiply uint8 activations with int8 weights add two neighbouring products
in 16 bits, and saturate. Activations reach 255, so two weights of one sign whose sum is beyond 128 can give another
number there than the file says. Which weights are neighbours was measured on an emulated Haswell:

- along the inputs of a sum, taps outermost and channels innermost, numbers 0 and 1, 2 and 3 and so on: ONNX Runtime's
  Conv, Gemm and MatMul, and OpenVINO's Gemm, MatMul and grouped Conv.
- the channels of each tap by themselves, so that the last of an odd count has no neighbour: OpenVINO's other Conv and
  its ConvTranspose.

A target says which of the two is its own (`Target.pair_order`). A depthwise Conv has kernels that add in 32 bits.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Float32, Int, Int8, Shaped
from numpy.typing import NDArray

from passes.graph.editing import initializer_array
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import data_input, weight_uses
from passes.target.target import Target

Rows = NDArray[Any]  # of floats, integers or marks
PairOrder = Literal["flat", "taps"]
STRETCH = 1 + 2.0**-9  # the least factor by which a free scale grows in one iteration
# What the inputs of a sum have in common, as a share of their energy: errors of one sign add up there, and those of
# moved pairs have one sign. Of 0, 0.1, 0.3, 0.6 and 0.95 this cost least on DGH images that had calibrated nothing
# (ResNet-20 and ResNet-8, powers of two and free: -0.10, -0.46, -0.28, +0.08 dB; with 0: -0.19, -0.78, -0.49, -0.23).
IN_COMMON = 0.1
FREE_CANDIDATES = 9  # of a free scale, from as it was to where the nearest integers are within the bound


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """The order of a layer's weight in its kernel: rows (R, T, C), one for each sum, of T taps by C channels.

    split, axes, sizes: the weight is reshaped to `split`, transposed to `axes`, and reshaped to `sizes` = (R, T, C).
    channel: (R,) index of each row's output channel, along the axis of the scales.
    flat: whether numbers of two taps can be neighbours.
    """

    split: tuple[int, ...]
    axes: tuple[int, ...]
    sizes: tuple[int, int, int]
    channel: Int[NDArray[np.int64], "r"]
    flat: bool

    def rows(self, weight: Shaped[Rows, "..."]) -> Shaped[Rows, "r t c"]:
        """The weight in kernel order, (R, T, C); a contiguous copy."""
        return np.array(weight.reshape(self.split).transpose(self.axes), order="C").reshape(self.sizes)

    def weight(self, rows: Shaped[Rows, "r t c"], shape: tuple[int, ...]) -> Shaped[Rows, "..."]:
        """The inverse of `rows`; shape: of the weight."""
        moved = rows.reshape([self.split[axis] for axis in self.axes])
        return moved.transpose(np.argsort(self.axes)).reshape(shape)

    def pairs(self, rows: Shaped[Rows, "r t c"]) -> tuple[Shaped[Rows, "r *half"], Shaped[Rows, "r *half"]]:
        """The first and the second numbers of all pairs of neighbours, as views into `rows`."""
        if self.flat:
            flat = rows.reshape(len(rows), -1)
            return flat[:, 0 : flat.shape[1] // 2 * 2 : 2], flat[:, 1::2]
        return rows[:, :, 0 : rows.shape[2] // 2 * 2 : 2], rows[:, :, 1::2]


def layout(node: ir.Node, shape: tuple[int, ...], order: PairOrder) -> Layout | None:
    """The layout of a layer whose weight has this shape; None where its kernel never adds in 16 bits."""
    group = node.attributes.get_int("group", 1)
    count = int(np.prod(shape))
    if not count:
        return None
    match node.op_type:
        case "Conv" | "QLinearConv" | "ConvInteger" if len(shape) > 2:
            if shape[1] == 1 and shape[0] == group:
                return None
            taps = count // (shape[0] * shape[1])
            return Layout(
                split=(shape[0], shape[1], taps),
                axes=(0, 2, 1),
                sizes=(shape[0], taps, shape[1]),
                channel=np.arange(shape[0]),
                flat=order == "flat" or group > 1,
            )
        case "ConvTranspose" if len(shape) > 2:
            inner, outer = shape[0] // group, shape[1]
            taps = count // (shape[0] * shape[1])
            return Layout(
                split=(group, inner, outer, taps),
                axes=(0, 2, 3, 1),
                sizes=(group * outer, taps, inner),
                channel=np.tile(np.arange(outer), group),
                flat=False,
            )
        case "Gemm" | "QGemm" | "MatMul" | "QLinearMatMul" | "MatMulInteger" if len(shape) > 0:
            if node.op_type in ("Gemm", "QGemm") and node.attributes.get_int("transB", 0) != 0:
                split, axes = (1, *shape), (0, 1, 2)
            else:
                *batch, depth, width = (*shape, 1) if len(shape) == 1 else shape
                split, axes = (int(np.prod(batch, dtype=int)), depth, width), (0, 2, 1)
            rows, depth = split[0] * split[axes[1]], split[axes[2]]
            channel = np.tile(np.arange(split[axes[1]]), split[0])
            return Layout(split=split, axes=axes, sizes=(rows, 1, depth), channel=channel, flat=True)
    return None


def pair_bound(limit: int, greatest: int) -> int:
    """The greatest allowed sum of two neighbouring weights of one sign.

    limit: of the kernel's 16-bit sums. greatest: activation, counted from the least integer of its container, as
    kernels multiply with that difference.
    """
    return limit // max(greatest, 1)


def greatest_pair_sum(node: ir.Node, integers: Int[NDArray[np.integer], "..."], order: PairOrder) -> int:
    """The greatest magnitude of a sum of two neighbours of one sign, or of one alone; 0 where none are added."""
    found = layout(node, integers.shape, order)
    if found is None:
        return 0
    rows = found.rows(integers.astype(np.int64))
    return int(_sums(*found.pairs(rows)).max(initial=0))


def pairs_beyond(
    node: ir.Node, integers: Int[NDArray[np.integer], "*shape"], bound: int, order: PairOrder
) -> Bool[NDArray[np.bool_], "*shape"]:
    """Which of the integers are in a pair whose sum is beyond `bound`; same shape."""
    found = layout(node, integers.shape, order)
    if found is None:
        return np.zeros(integers.shape, bool)
    rows = found.rows(integers.astype(np.int64))
    marks = np.zeros(rows.shape, bool)
    beyond = _sums(*found.pairs(rows)) > bound
    for half in found.pairs(marks):
        half[...] = beyond
    return np.asarray(found.weight(marks, integers.shape), bool)


def bound_of_weight(node: ir.Node, weight: str, plan: QuantPlan, target: Target) -> int | None:
    """`pair_bound` for the initializer `weight` of `node`; None where its kernel does not add pairs in 16 bits.

    Whether it does depends on the operator and the element type of the activation: `OperatorRule.adds_pairs`.
    """
    rule = target.operators.get(node.op_type)
    use = next((use for use in weight_uses(node) if use.initializer == weight), None)
    if not target.pair_limit or rule is None or not rule.adds_pairs or use is None:
        return None
    value = node.inputs[1]
    read = plan.read_quant(data_input(node, use))
    if value is None or value.name != weight or read is None or read.bits > 8 or weight not in plan.weights:
        return None
    container = target.signed_activations if read.signed else target.unsigned_activations
    if container not in rule.adds_pairs:
        return None
    below = 2**7 if read.signed else read.zero_point
    return pair_bound(target.pair_limit, read.range[1] + below)


def within_pair_sums(
    model: ir.Model, plan: QuantPlan, target: Target, nodes: Iterable[ir.Node] | None = None
) -> QuantPlan:
    """The plan with weights on which the target's kernels saturate on no processor.

    A channel with pairs beyond the bound gets the change that costs its output least: those pairs moved to the bound,
    or a coarser scale (where scales are powers of two the next one, else of several up to where no pair is beyond, with
    what is left moved). Weights within the bound keep their TensorQuant. Biases are to be corrected after this.
    nodes: whose weights are looked at, all where nothing is said.
    """
    weights, integers = dict(plan.weights), dict(plan.integers)
    for node in model.graph if nodes is None else nodes:
        for use in weight_uses(node):
            name = use.initializer
            bound = bound_of_weight(node, name, plan, target)
            if bound is None:
                continue
            array = initializer_array(model.graph, name)
            tuned = integers.get(name)
            present = weights[name].integers(array) if tuned is None else tuned.astype(np.int64)
            found = _within(node, array, weights[name], present, bound, target.pair_order)
            if found is not None:
                weights[name], moved = found
                integers.pop(name, None)
                if moved is not None:
                    integers[name] = moved
    return replace(plan, weights=weights, integers=integers)


def _within(
    node: ir.Node,
    array: Float32[NDArray[np.float32], "*shape"],
    quant: TensorQuant,
    integers: Int[NDArray[np.int64], "*shape"],
    bound: int,
    order: PairOrder,
) -> tuple[TensorQuant, Int8[NDArray[np.int8], "*shape"] | None] | None:
    """A new grid, and integers where they are not the nearest on it; None where `integers` are within the bound."""
    place = layout(node, array.shape, order)
    if place is None:
        return None
    channels = 1 if quant.axis is None else quant.threshold.size
    channel = np.zeros(len(place.channel), np.int64) if quant.axis is None else place.channel
    best = place.rows(integers)
    over = _channels_beyond(place, best, channel, channels, bound)
    if not over.any():
        return None
    exact = place.rows(array.astype(np.float64))
    widest = _coarser(quant, array, place, channel, over, bound).threshold / quant.threshold
    powers = (0.0, 1.0) if is_power_of_two(quant.threshold) else np.linspace(0, 1, FREE_CANDIDATES)
    chosen, least = quant, np.full(channels, np.inf)
    for power in powers:
        grid = replace(quant, threshold=quant.threshold * widest**power)
        scale = grid.scale.reshape(-1)[channel][:, None, None]
        rows = _moved(place, best if power == 0 else place.rows(grid.integers(array)), exact / scale, bound)
        error = (rows * scale - exact).reshape(len(rows), -1)
        cost = (1 - IN_COMMON) * np.square(error).sum(axis=1) + IN_COMMON * np.square(error.sum(axis=1))
        cost = np.bincount(channel, cost, channels)
        better = over & (cost < least)
        least = np.where(better, cost, least)
        threshold = np.where(better.reshape(quant.threshold.shape), grid.threshold, chosen.threshold)
        chosen = replace(quant, threshold=threshold)
        best = np.where(better[channel][:, None, None], rows, best)
    kept = place.weight(best, array.shape)
    return chosen, None if np.array_equal(kept, chosen.integers(array)) else np.asarray(kept, np.int8)


def _coarser(
    quant: TensorQuant,
    array: Float32[NDArray[np.float32], "..."],
    place: Layout,
    channel: Int[NDArray[np.int64], "r"],
    over: Bool[NDArray[np.bool_], "channels"],
    bound: int,
) -> TensorQuant:
    """The grid with scales of the channels `over` so large that the nearest integers are within the bound."""
    doubles = is_power_of_two(quant.threshold)
    while over.any():
        rows = place.rows(quant.integers(array))
        worst = np.zeros(over.size)
        sums = _sums(*place.pairs(rows))
        np.maximum.at(worst, channel, sums.max(axis=tuple(range(1, sums.ndim)), initial=0))
        over = worst > bound
        factor = np.where(over, 2.0 if doubles else np.maximum(worst / bound, STRETCH), 1.0)
        quant = replace(quant, threshold=quant.threshold * factor.reshape(quant.threshold.shape))
    return quant


def _moved(
    place: Layout, rows: Shaped[Rows, "r t c"], exact: Shaped[Rows, "r t c"], bound: int
) -> Shaped[Rows, "r t c"]:
    """The integers with every pair beyond the bound moved onto it, as near to `exact` (weight / scale) as possible.

    Numbers only move towards zero, so no pair that is within the bound leaves it.
    """
    rows = rows.copy()
    (first, second), (x, y) = place.pairs(rows), place.pairs(exact)
    for sign in (1, -1):
        beyond = sign * (first + second) > bound  # both of this sign, for neither alone is beyond
        share = np.clip(np.rint((bound + sign * (x - y)) / 2), bound - sign * second, sign * first)
        first[beyond] = sign * share[beyond]
        second[beyond] = sign * (bound - share)[beyond]
    return rows


def _channels_beyond(
    place: Layout, rows: Shaped[Rows, "r t c"], channel: Int[NDArray[np.int64], "r"], channels: int, bound: int
) -> Bool[NDArray[np.bool_], "{channels}"]:
    over = np.zeros(channels, bool)
    row = (_sums(*place.pairs(rows)) > bound).reshape(len(rows), -1).any(axis=1)
    np.logical_or.at(over, channel, row)
    return over


def _sums(first: Shaped[Rows, "*half"], second: Shaped[Rows, "*half"]) -> Int[NDArray[np.int64], "*half"]:
    """Of each pair the larger magnitude of the sum of its positive and of its negative numbers."""
    positive = np.maximum(first, 0) + np.maximum(second, 0)
    negative = np.minimum(first, 0) + np.minimum(second, 0)
    return np.asarray(np.maximum(positive, -negative))
