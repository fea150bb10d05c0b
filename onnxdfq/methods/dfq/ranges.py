"""Histograms and channel means from BatchNormalization alone (DFQ, arXiv 1906.04721, sections 4.2 and 5.1.1).

Each channel in front of an activation function is taken to be normally distributed, with the mean beta and the standard
deviation |gamma| of its BatchNormalization; `passes.moments` carries the distributions through activation functions,
sums, poolings and layers without normalization. The histograms take the place of those that `Calibration.observe`
counts, so the search for thresholds is the same: with clipping "max" the ranges are DFQ's beta ± 6 gamma, and the bias
correction is its Eq. (17).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxdfq.calibration.bias_correction import has_bias_to_set
from onnxdfq.calibration.histogram import BINS, Histogram
from onnxdfq.calibration.observation import ChannelMean, Observations
from onnxdfq.errors import InputError
from onnxdfq.methods.dfq.unknown import unknown, within_known_ranges
from onnxdfq.methods.method import FloatModel
from onnxdfq.model_file import main_input
from onnxdfq.synthesis.input_range import input_range
from onnxdfq.synthesis.network import no_batch_norm
from passes.graph.batch_norm import read_batch_norms
from passes.graph.editing import name_of
from passes.moments.moments import Moments, value_spreads
from passes.moments.moves import LabelledSpread, along_channels
from passes.moments.spread import ABSCISSAE, WEIGHTS, Spread
from passes.quantize.points import find_quant_points
from passes.target.target import Target

FINER = 8  # points between two abscissae, so that the steps of an 8-bit grid do not beat with them
FULL = 2**24  # counts of each channel in a histogram


def observations_from_batch_norm(
    model: ir.Model, moments: Mapping[str, Moments | Spread], targets: Sequence[Target], *, activations: bool = True
) -> Observations:
    """The observations that calibration needs, computed from moments: no image and no random number takes part.

    Args:
        model: Float, BatchNormalization folded; it is only read.
        moments: By value name: `batch_norm_moments` from before the folding, with every later edit of the graph
            (`moments_after_edit`), and the image input's distribution (`image_spread`).
        targets: Tell which values are quantized.
        activations: Whether activations are quantized; if not, only the means that correct biases are computed.

    Raises:
        InputError: A range or a mean does not follow from the moments, nor a range from the operator; names the first
            such value. A guess in its place would go unnoticed until the file runs on the device.
    """
    points = [find_quant_points(model, target) for target in targets]
    every = {name for found in points for name in found.activations}
    wanted, fed = every if activations else set(), every | {name for found in points for name in found.same_as}
    sources = {name_of(node.inputs[0]) for node in model.graph if has_bias_to_set(node)} & fed
    histograms: dict[str, Histogram] = {}
    means: dict[str, ChannelMean] = {}
    for name, found in value_spreads(model, moments):
        spread = found if isinstance(found, Spread) else found.spread
        if name in sources | wanted and not (np.abs(spread.points) <= np.finfo(np.float32).max).all():
            raise InputError(
                f"The value {name!r} becomes infinite or not a number by its batch normalizations; check the weights."
            )
        if name in sources:
            means[name] = _mean(found)
        if name in wanted:
            histograms[name] = _histogram(spread)
    for name, spread in within_known_ranges(model, wanted - histograms.keys()):
        histograms[name] = _histogram(spread)
    ranges, averages = wanted - histograms.keys(), sources - means.keys()
    if ranges or averages:
        raise InputError(unknown(model, ranges, averages))
    return Observations(histograms=histograms, means=means)


def with_input_spread(model: FloatModel, method: str) -> FloatModel:
    """The model with the distribution of its image input (`FloatModel.inputs`).

    It follows from the normalization where the user gave one, else from the first layer's BatchNormalization.

    Args:
        model: With its BatchNormalizations.
        method: Name that the error message begins with.

    Raises:
        NoBatchNorm: The model has no BatchNormalization.
    """
    if not read_batch_norms(model.graph):
        raise no_batch_norm(model.graph, method)
    pixels, name = input_range(model.graph, model.normalization), main_input(model.graph).name
    low, high = (pixels.mean + pixels.std * limit for limit in (pixels.low, pixels.high))
    spread = image_spread(name, mean=pixels.mean, std=pixels.std, low=low, high=high)
    return replace(model, inputs={name: spread})


def image_spread(
    name: str,
    *,
    mean: NDArray[np.floating],
    std: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
) -> Spread:
    """The distribution of an image input: normal, clipped to the range of pixels.

    Args:
        name: Of the input.
        mean: (C,) of all pixels, in the model's input units.
        std: (C,) standard deviation, in the same units.
        low: (C,) the value of a black pixel.
        high: (C,) the value of a white pixel.
    """
    pixels = Spread.normal(mean.astype(np.float64), std.astype(np.float64), origin=name)
    return pixels.mapped(lambda x: np.minimum(np.maximum(x, low[:, None]), high[:, None]))


def _mean(found: Spread | LabelledSpread) -> ChannelMean:
    mean = ChannelMean(axis=1)
    mean.total, mean.count = (along_channels(found, "") if isinstance(found, LabelledSpread) else found).mean, 1
    return mean


def _histogram(spread: Spread) -> Histogram:
    """The histogram of all channels, each with the same weight."""
    fine = np.linspace(0, len(ABSCISSAE) - 1, FINER * (len(ABSCISSAE) - 1) + 1)
    below = np.floor(fine).astype(int).clip(max=len(ABSCISSAE) - 2)
    share = fine - below
    points = spread.points[:, below] * (1 - share) + spread.points[:, below + 1] * share
    weights = np.interp(fine, np.arange(len(ABSCISSAE)), WEIGHTS) / FINER
    histogram = Histogram()
    histogram.add(torch.tensor([points.min(), points.max()]))  # sets its bound and its ends
    ends = (-histogram.bound, histogram.bound)
    counted, _ = np.histogram(points, BINS, ends, weights=np.broadcast_to(weights, points.shape))
    histogram.counts = np.rint(FULL * counted).astype(np.int64)
    return histogram
