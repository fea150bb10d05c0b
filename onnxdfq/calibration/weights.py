"""The grids of weights, and of the constants that element-wise operators combine with activations."""

import logging

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_threshold, weight_thresholds
from onnxdfq.recipe.choices import Clipping, Scales
from passes.quantize.grid import integer_range
from passes.quantize.plan import QuantPlan, TensorQuant

logger = logging.getLogger(__name__)

CONSTANT_BITS = 8  # of what scales or shifts a whole channel; there is little of it


def weight_quant(
    weight: Float32[NDArray[np.float32], "..."],
    bits: int,
    scheme: Scales,
    clipping: Clipping,
    *,
    axis: int | None,
    narrow: bool,
) -> TensorQuant:
    """The grid of a weight, with sign.

    Args:
        weight: Of any shape.
        bits: Its width.
        scheme: Which thresholds there are.
        clipping: How they are found (see `thresholds`).
        axis: Of the output channels, each of which gets a threshold; None for one in all.
        narrow: Whether the least integer is left out, so that the grid is symmetric.
    """
    least, greatest = integer_range(bits, signed=True)
    return TensorQuant(
        bits=bits,
        signed=True,
        axis=axis,
        threshold=weight_thresholds(weight, bits, scheme, axis=axis, narrow=narrow, clipping=clipping),
        clip=(least + 1, greatest) if narrow else None,
    )


def constant_quant(
    constant: Float32[NDArray[np.float32], "..."], bits: int, scheme: Scales, *, only_signed: bool
) -> TensorQuant:
    """The one grid of a constant of any shape, 8 bits at least; without sign where it may be and has none."""
    histogram, bits = Histogram(), max(bits, CONSTANT_BITS)
    histogram.add(torch.tensor(constant))
    signed = histogram.least < 0 or only_signed
    threshold = activation_threshold(histogram, bits, scheme, signed=signed, limit=None)
    return TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold))


def log_coarser(before: QuantPlan, after: QuantPlan, reason: str) -> None:
    """Tell a debugging user which channels of which weights have coarser scales in the second plan."""
    for name, quant in after.weights.items():
        old = before.weights[name]
        if quant is old:
            continue
        channels = np.flatnonzero(quant.threshold > old.threshold)
        if channels.size:
            logger.debug("%s: coarser scales in channels %s %s", name, channels.tolist(), reason)
