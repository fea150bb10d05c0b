"""Cross-layer equalization (DFQ, arXiv 1906.04721, section 4.1): ranges of weights move between neighbouring layers."""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from passes.graph.affine import Array, scale_outputs, write_layer
from passes.graph.channel_paths import (
    ChannelPath,
    channel_paths,
    input_features,
    layer_bias,
    layer_weight,
    layers_beside,
    magnitudes,
    scale_inputs,
)
from passes.graph.editing import FreshNames, constant_value, is_constant, is_op, name_of, scalar_value
from passes.graph.operators import HOMOGENEOUS

logger = logging.getLogger(__name__)

MAX_ROUNDS = 1000
TOLERANCE = 1e-4  # of the logarithm of a scale: a hundredth of a percent
LEAST_SHARE_OF_RANGE = 1e-4  # of the layer's greatest range; below it a channel is dead, and is not equalized


def equalizing_scales(model: ir.Model) -> dict[str, Float64[Array, "_"]]:
    """The scales of cross-layer equalization, for EqualizeChannels: by value name, (C,) of its channels, all positive.

    Eq. (11) of DFQ: s_j = sqrt(r1_j r2_j) / r1_j for output channel j of one layer and input channel j of the next, r1
    and r2 the greatest magnitudes of their weights. All pairs in turn until nothing changes, so that the layers of a
    chain (pointwise, depthwise, pointwise) end with one range, as by DFQ's rule for three.

    A pair is two of Conv, ConvTranspose, Gemm (grouped and depthwise too) with constant weights, and between them
    nothing but Relu, LeakyRelu, PRelu, poolings, Pad with zeros, Resize, Flatten and Clip to [0, infinity), each read
    by the next alone. Clip with an upper bound (ReLU6) ends the path: see `LiftClips`. A channel whose weights are
    all but zero on either side keeps scale 1.
    """
    paths = list(scalable_paths(model))
    tables = {path.target: _magnitudes(path.target, path.channels) for path in paths}
    tables |= {path.source: _magnitudes(path.source) for path in paths if path.source not in tables}
    scales = [np.ones(path.channels) for path in paths]
    alive = [_alive(*_ranges(path, tables)) for path in paths]
    for _ in range(MAX_ROUNDS):
        change = 0.0
        for path, scale, mask in zip(paths, scales, alive, strict=True):
            out, into = _ranges(path, tables)
            factor = np.sqrt(np.divide(into, out, out=np.ones_like(out), where=mask))
            tables[path.source] *= factor.reshape(*tables[path.source].shape[:2], 1)
            tables[path.target] /= factor.reshape(len(tables[path.target]), 1, -1)
            scale *= factor
            change = max(change, float(np.abs(np.log(factor)).max(initial=0)))
        if change < TOLERANCE:
            break
    return {
        name_of(value): np.repeat(scale, repeats)
        for path, scale in zip(paths, scales, strict=True)
        for value, repeats in zip(path.values, path.repeats, strict=True)
    }


def scalable_paths(model: ir.Model) -> Iterator[ChannelPath]:
    """The pairs of layers between which each channel may have a positive scale, in graph order."""
    return channel_paths(model, _scales_through)


class EqualizeChannels(ir.passes.InPlacePass):
    """Multiplies the channels of values by positive scales, so that the model computes what it did.

    1. A layer whose output is scaled: its weight and bias, by output channel.
    2. A layer whose input is scaled: its weight, by input channel, with the inverse.
    3. What lies between (`equalizing_scales` chooses only such) needs no edit.
    """

    def __init__(self, scales: Mapping[str, Float64[Array, "_"]]) -> None:
        self.scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names, count = FreshNames(model.graph), 0
        for node, weight, after, before in layers_beside(model, self.scales):
            bias = layer_bias(node)
            assert bias is not None
            if before is not None:
                weight = scale_inputs(node, weight, 1 / before)
            if after is not None:
                weight = scale_outputs(node, weight, after)
            scaled_bias = bias * after if after is not None and bias.any() else None
            write_layer(node, names, weight=weight, bias=scaled_bias)
            ends = [end for end, scale in (("inputs", before), ("outputs", after)) if scale is not None]
            logger.debug("%s %s: %s scaled", node.op_type, node.name, " and ".join(ends))
            count += 1
        return ir.passes.PassResult(model, modified=bool(count))


def _scales_through(node: ir.Node) -> bool:
    """f(s x) = s f(x) for every positive scale of a channel."""
    if is_op(node, "PRelu"):
        return is_constant(node.inputs[1])
    if is_op(node, "Clip"):
        low = scalar_value(node.inputs[1]) if len(node.inputs) > 1 else None
        high = node.inputs[2] if len(node.inputs) > 2 else None
        return low == 0 and (high is None or scalar_value(high) == np.inf)
    if is_op(node, "Pad"):
        fill, amounts = node.inputs[2] if len(node.inputs) > 2 else None, constant_value(node.inputs[1])
        channels = (
            None if amounts is None or amounts.size < 4 or len(node.inputs) > 3 else amounts[1 :: amounts.size // 2]
        )
        return channels is not None and not channels.any() and (fill is None or scalar_value(fill) == 0)
    if is_op(node, "Resize"):
        cubic = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        return not cubic
    if is_op(node, "Flatten"):
        return node.attributes.get_int("axis", 1) == 1
    return is_op(node, *HOMOGENEOUS)


def _magnitudes(node: ir.Node, channels: int | None = None) -> Float64[Array, "g o i"]:
    """(g, O/g, I/g), in float64; `channels` of the input, by default as many as the weight takes."""
    weight = layer_weight(node)
    assert weight is not None
    return magnitudes(node, weight, channels or input_features(node) or 0)


def _ranges(path: ChannelPath, tables: Mapping[ir.Node, Array]) -> tuple[Array, Array]:
    """(C,) of the outputs of the layer before, (C,) of the inputs of the layer behind."""
    return tables[path.source].max(axis=2).reshape(-1), tables[path.target].max(axis=1).reshape(-1)


def _alive(out: Float64[Array, "c"], into: Float64[Array, "c"]) -> Bool[NDArray[np.bool_], "c"]:
    """(C,) which channels have a range on both sides."""
    least = [LEAST_SHARE_OF_RANGE * ranges.max(initial=0) for ranges in (out, into)]
    return np.asarray((out > least[0]) & (into > least[1]))
