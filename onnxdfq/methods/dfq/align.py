"""Channel scales for which the best threshold of a weight, per output channel, is a power of two.

Cross-layer equalization (`passes.dfq.equalize`) may multiply the channels between two layers by any positive factors.
Where scales have to be powers of two, the factor 2^k / t moves the threshold t of least squared error, of an output
channel of the first layer, to 2^k, so that the restriction costs that layer nothing. The second layer's weights are
multiplied by the inverse, at most sqrt(2), and are aligned next. Values that feed a sum or leave the graph keep their
channels, for other nodes read these too.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.calibration.thresholds import weight_thresholds
from passes.dfq.equalize import scalable_paths
from passes.graph.affine import scale_outputs
from passes.graph.channel_paths import layer_weight, scale_inputs
from passes.graph.editing import is_op, name_of


def aligning_scales(model: ir.Model, bits: int) -> dict[str, NDArray[np.float64]]:
    """The factors by which EqualizeChannels aligns weights to power-of-two thresholds.

    Args:
        model: Float, BatchNormalization folded, and already equalized where that is wanted; it is only read.
        bits: Of the weights, whose scales are powers of two, per output channel.

    Returns:
        By value name, (C,) float64, from 2^-1/2 to 2^1/2.
    """
    paths = list(scalable_paths(model))
    weights = {node: layer_weight(node) for path in paths for node in (path.source, path.target)}
    scales: dict[str, NDArray[np.float64]] = {}
    for path in paths:
        weight = weights[path.source]
        target = weights[path.target]
        assert weight is not None and target is not None
        scale = _scale(path.source, weight, bits)
        weights[path.source] = scale_outputs(path.source, weight, scale)
        weights[path.target] = scale_inputs(path.target, target, 1 / scale)
        for value, repeats in zip(path.values, path.repeats, strict=True):
            scales[name_of(value)] = np.repeat(scale, repeats)
    return scales


def _scale(node: ir.Node, weight: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """(C_out,) the factor of each output channel; 1 where its weights are all zero."""
    if is_op(node, "Conv"):
        axis = 0
    elif is_op(node, "ConvTranspose"):
        axis = 1  # (C_in, C_out / group, ...): the groups share their thresholds
    else:
        axis = 0 if node.attributes.get_int("transB", 0) != 0 else 1
    thresholds = weight_thresholds(weight.astype(np.float32), bits, "free", axis=axis)
    scale = np.exp2(np.rint(np.log2(thresholds))) / thresholds
    scale[~np.abs(weight).reshape(weight.shape).any(axis=tuple(d for d in range(weight.ndim) if d != axis))] = 1.0
    return np.tile(scale, node.attributes.get_int("group", 1) if axis == 1 and is_op(node, "ConvTranspose") else 1)
