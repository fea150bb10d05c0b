"""Channels scaled so that the best free scales of their weights come out as powers of two.

Cross-layer equalization (`passes.dfq.equalize`) may multiply the channels between two layers with any positive factors.
Where scales have to be powers of two, the factor 2^k / t turns the threshold t that squared error asks for, of an
output channel of the first layer, into 2^k: the layer then loses nothing to the restriction. The second layer's weights
take the inverse, at most a factor sqrt(2), and are aligned in their turn. What feeds a sum or leaves the graph is not.
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
    """What EqualizeChannels is to multiply each value with: by value name, (C,), from 2^-1/2 to 2^1/2 and inverses.

    For a float graph with BatchNormalization folded (and equalized, where that is wanted) whose weights are to have
    `bits` bits, per output channel, and power-of-two scales.
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
    """(C_out,) 1 where the weights of a channel are all zero."""
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
