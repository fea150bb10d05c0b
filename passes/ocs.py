"""Outlier channel splitting (OCS, Zhao et al., arXiv 1901.09504): channels with large weights are duplicated."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Int
from numpy.typing import NDArray

from passes.graph.affine import Array, write_layer
from passes.graph.channel_paths import (
    ChannelPath,
    channel_paths,
    input_features,
    layer_bias,
    layer_weight,
    magnitudes,
)
from passes.graph.editing import FreshNames, add_initializer, is_op, name_of
from passes.graph.operators import CHANNELWISE
from passes.quantize.grid import covering_power_of_two, scale_of

logger = logging.getLogger(__name__)

# What lets more channels through without an edit of its own. The slopes of PRelu and the sizes of Resize are given per
# channel and would need one; Selu is not tested.
COPYING = CHANNELWISE - {"PRelu", "Resize", "Selu"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSplit:
    """How the input channels of one layer are split.

    copies: (C,) number of copies of each, 1 for most.
    scale: () or (C_out,) of the grid that the weights will be rounded to; copies differ by fractions of it.
    """

    copies: Int[NDArray[np.int64], "c"]
    scale: NDArray[np.float64]

    @property
    def sources(self) -> Int[NDArray[np.int64], "_"]:
        """(C',) the old channel of each new one."""
        return np.repeat(np.arange(len(self.copies)), self.copies)


def channel_splits(
    model: ir.Model, *, ratio: float, bits: int, power_of_two: bool = True, per_channel: bool = True
) -> dict[str, ChannelSplit]:
    """The splits of every Conv without groups and Gemm that reads no graph input: by node name.

    Args:
        model: with constant weights.
        ratio: of channels to split; ceil(ratio C) of C. 0.01 to 0.05 in the paper.
        bits: of the weights; with power_of_two it tells the scale.
        power_of_two: whether scales will be powers of two.
        per_channel: whether each output channel has a scale of its own.

    One at a time the input channel is split whose splitting lowers the greatest weights most: of the whole weight, as
    in OCS, or (per_channel) summed over the output channels.
    """
    found: dict[str, ChannelSplit] = {}
    for node in model.graph:
        weight, features = layer_weight(node), input_features(node)
        source = node.inputs[0] if node.inputs else None
        plain = is_op(node, "Conv", "Gemm") and node.attributes.get_int("group", 1) == 1
        if weight is None or features is None or source is None or source.is_graph_input() or not plain:
            continue
        (table,) = magnitudes(node, weight, features)  # (O, C)
        table = table if per_channel else table.max(axis=0, keepdims=True)
        copies = _copies(table, int(np.ceil(ratio * features)))
        greatest = (table / copies).max(axis=1)
        threshold = covering_power_of_two(greatest) if power_of_two else np.maximum(greatest, 1e-12)
        scale = scale_of(threshold, bits, signed=True)
        found[name_of(node)] = ChannelSplit(copies=copies, scale=scale if per_channel else scale[0])
    return found


class SplitChannels(ir.passes.InPlacePass):
    """Splits input channels of layers; the float function stays what it is.

    1. The layer reads n copies of a channel, with a weight w as w/n + scale ((i + 1/2)/n - 1/2), i = 0 … n - 1. These
       sum to w, and rounded to the grid they sum to w rounded (Hermite's identity; for n = 2 the paper's
       quantization-aware splitting): the greatest weight shrinks and no rounding error is added.
    2. Where nothing but this layer reads what a Conv, ConvTranspose or Gemm without groups gives, with activations and
       poolings between them, the producer gives the copies itself.
    3. Elsewhere a Gather in front of the layer makes them.
    """

    def __init__(self, splits: Mapping[str, ChannelSplit]) -> None:
        self.splits = splits

    def requires(self, model: ir.Model) -> None:
        """Every layer that is named must be there."""
        if missing := sorted(self.splits.keys() - {node.name for node in model.graph}):
            raise ir.passes.PreconditionError(f"the splits name what the graph lacks: {', '.join(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names, paths = FreshNames(model.graph), _widening_paths(model)
        for node in list(model.graph):
            split = self.splits.get(name_of(node))
            if split is None or (split.copies == 1).all():
                continue
            _split_inputs(node, split, names)
            if (path := paths.get(node)) is None:
                _gather_copies(node, split.sources, names)
            else:
                _widen(path, split.sources, names)
            origin = "a Gather" if path is None else path.source.name
            channels = len(split.copies)
            logger.debug("%s reads %d channels for %d, from %s", node.name, len(split.sources), channels, origin)
        return ir.passes.PassResult(model, modified=any((split.copies > 1).any() for split in self.splits.values()))


def widened_values(model: ir.Model, splits: Mapping[str, ChannelSplit]) -> dict[str, Int[NDArray[np.int64], "_"]]:
    """The values to which SplitChannels will add channels: by name, (C',) the old channel of each new one.

    Compute it before the pass; `moments_after_edit` takes it.
    """
    return {
        name_of(value): splits[name_of(path.target)].sources
        for path in _widening_paths(model).values()
        if path.target.name in splits
        for value in path.values
    }


def _copies(table: Float64[Array, "rows c"], count: int) -> Int[NDArray[np.int64], "c"]:
    """(C,) after `count` splits; table: (rows, C) magnitudes, each row with a grid of its own."""
    copies = np.ones(table.shape[1], np.int64)
    rows = np.arange(len(table))
    for _ in range(count):
        parts = table / copies
        worst = parts.argmax(axis=1)
        greatest = parts[rows, worst]
        parts[rows, worst] = 0
        after = np.maximum(parts.max(axis=1), table[rows, worst] / (copies[worst] + 1))
        gain = np.bincount(worst, np.square(greatest) - np.square(after), table.shape[1])
        copies[gain.argmax()] += 1
    return copies


def _widening_paths(model: ir.Model) -> dict[ir.Node, ChannelPath]:
    """By the layer at its end: each path whose first layer can compute the copies itself."""
    return {
        path.target: path
        for path in channel_paths(model, lambda node: is_op(node, *COPYING) or _flattens(node))
        if path.run == 1 and path.source.attributes.get_int("group", 1) == 1
    }


def _flattens(node: ir.Node) -> bool:
    return is_op(node, "Flatten") and node.attributes.get_int("axis", 1) == 1


def _split_inputs(node: ir.Node, split: ChannelSplit, names: FreshNames) -> None:
    weight = layer_weight(node)
    assert weight is not None
    axis = _input_axis(node)
    rows = np.moveaxis(weight, axis, 1) if axis == 1 else weight.T  # (O, C, taps...)
    sources, copies = split.sources, split.copies[split.sources]
    first = np.cumsum(split.copies) - split.copies
    part = np.arange(len(sources)) - first[sources]  # i, of each new channel
    offset = (part + 0.5) / copies - 0.5
    inner = (1,) * (rows.ndim - 2)
    shifted = split.scale.reshape(-1, 1, *inner) * offset.reshape(1, -1, *inner)
    parted = rows[:, sources] / copies.reshape(1, -1, *inner) + shifted
    write_layer(node, names, weight=parted if axis == 1 else parted.T)


def _input_axis(node: ir.Node) -> int:
    """Of the weight of a Conv or Gemm."""
    return 1 if is_op(node, "Conv") or node.attributes.get_int("transB", 0) != 0 else 0


def _gather_copies(node: ir.Node, sources: Int[NDArray[np.int64], "c"], names: FreshNames) -> None:
    data = node.inputs[0]
    assert data is not None and isinstance(node.graph, ir.Graph)
    indices = add_initializer(node.graph, names(f"{node.name}.channels"), sources)
    gather = ir.node("Gather", [data, indices], {"axis": 1}, name=names(f"{node.name}.split"))
    result = gather.outputs[0]
    result.name, result.type = names(f"{data.name}.split"), data.type
    result.shape = None if data.shape is None else ir.Shape([data.shape[0], len(sources), *data.shape[2:]])
    node.graph.insert_before(node, gather)
    node.replace_input_with(0, result)


def _widen(path: ChannelPath, sources: Int[NDArray[np.int64], "c"], names: FreshNames) -> None:
    layer = path.source
    weight, bias = layer_weight(layer), layer_bias(layer)
    assert weight is not None and bias is not None
    transposed = is_op(layer, "Gemm") and layer.attributes.get_int("transB", 0) != 0
    widened = weight.take(sources, 0 if is_op(layer, "Conv") or transposed else 1)
    biased = len(layer.inputs) > 2 and layer.inputs[2] is not None
    write_layer(layer, names, weight=widened, bias=bias[sources] if biased else None)
    for value in path.values:
        if value.shape is not None:
            value.shape = ir.Shape([value.shape[0], len(sources), *value.shape[2:]])
