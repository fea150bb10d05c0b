"""`ChannelPath`: from a layer, through operators that keep channels apart, to the one layer that reads them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64

from passes.graph.affine import Array, ChannelAffine, absorb_inputs, constant_bias, output_channels
from passes.graph.editing import as_float64, constant_value, is_op, name_of, sole_consumer
from passes.graph.operators import LAYERS


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelPath:
    """source → between → target, each value read by the next node alone.

    values: the outputs of `source` and of each node of `between`.
    channels: of the output of `source`. run: the inputs of `target` that belong to each: 1, or more behind Flatten.
    """

    source: ir.Node
    values: tuple[ir.Value, ...]
    between: tuple[ir.Node, ...]
    target: ir.Node
    channels: int
    run: int

    @property
    def repeats(self) -> tuple[int, ...]:
        """For each of `values` the numbers along axis 1 that belong to a channel: 1, or `run` behind Flatten."""
        flat = [False, *(is_op(node, "Flatten") for node in self.between)]
        return tuple(self.run if any(flat[: index + 1]) else 1 for index in range(len(flat)))


def channel_paths(model: ir.Model, passes_on: Callable[[ir.Node], bool]) -> Iterator[ChannelPath]:
    """All paths between layers with constant weights whose nodes between satisfy `passes_on`, in graph order."""
    for source in model.graph:
        if (weight := layer_weight(source)) is None or layer_bias(source) is None:
            continue
        values, between = [source.outputs[0]], []
        while (node := sole_consumer(values[-1])) is not None and node.inputs[0] is values[-1] and passes_on(node):
            between.append(node)
            values.append(node.outputs[0])
        if node is None or node.inputs[0] is not values[-1] or values[-1] in node.inputs[1:]:
            continue
        channels, features = output_channels(source, weight), input_features(node)
        if features is None or features % channels or layer_bias(node) is None:
            continue
        run = features // channels
        if run > 1 and not any(is_op(each, "Flatten") for each in between):
            continue
        yield ChannelPath(
            source=source, values=tuple(values), between=tuple(between), target=node, channels=channels, run=run
        )


def layer_weight(node: ir.Node) -> Float64[Array, "_ _ ..."] | None:
    """The constant weight of Conv, ConvTranspose or Gemm, in float64; else None."""
    if not is_op(node, *LAYERS) or node.attributes.get_int("transA", 0) != 0:
        return None
    weight = constant_value(node.inputs[1])
    return None if weight is None or weight.dtype.kind != "f" else as_float64(weight)


def layer_bias(node: ir.Node) -> Float64[Array, "o"] | None:
    """(C_out,) the bias of a layer, zeros where it has none; None where it is no constant per channel."""
    weight = layer_weight(node)
    if weight is None:
        return None
    return constant_bias(node, output_channels(node, weight))


def input_features(node: ir.Node) -> int | None:
    """Size of axis 1 of the layer's input; None where `node` is no layer with a constant weight."""
    weight = layer_weight(node)
    if weight is None:
        return None
    if is_op(node, "Conv"):
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    transposed = is_op(node, "Gemm") and node.attributes.get_int("transB", 0) != 0
    return int(weight.shape[int(transposed)])


def scale_inputs(
    node: ir.Node, weight: Float64[Array, "*shape"], scale: Float64[Array, "c"]
) -> Float64[Array, "*shape"]:
    """Weight of the layer preceded by `scale` (C,); a Gemm behind Flatten sees each channel as a run of features."""
    if is_op(node, "ConvTranspose"):
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return absorb_inputs(node, weight, ChannelAffine(scale=scale, shift=np.zeros_like(scale)))[0]


def magnitudes(node: ir.Node, weight: Float64[Array, "_ _ ..."], channels: int) -> Float64[Array, "g o i"]:
    """(g, O/g, I/g) greatest |w| of the taps between each output and each input channel.

    channels: of the input. Behind Flatten a Gemm reads several features of each, which then are its taps.
    """
    if is_op(node, "Gemm"):
        rows = weight if node.attributes.get_int("transB", 0) else weight.T  # (O, K)
        return np.asarray(np.abs(rows).reshape(1, len(rows), channels, -1).max(axis=3, initial=0))
    group = node.attributes.get_int("group", 1)
    split = np.abs(weight).reshape(group, weight.shape[0] // group, weight.shape[1], -1)
    table = np.asarray(split.max(axis=3, initial=0))
    return table if is_op(node, "Conv") else table.transpose(0, 2, 1)


def layers_beside(
    model: ir.Model, named: Mapping[str, Float64[Array, "_"]]
) -> Iterator[tuple[ir.Node, Array, Array | None, Array | None]]:
    """The layers whose output or input has an entry in `named`: (layer, weight, output's entry, input's entry)."""
    for node in model.graph:
        weight, source = layer_weight(node), node.inputs[0] if node.inputs else None
        if weight is None or source is None:
            continue
        after, before = named.get(name_of(node.outputs[0])), named.get(name_of(source))
        if after is not None or before is not None:
            yield node, weight, after, before
