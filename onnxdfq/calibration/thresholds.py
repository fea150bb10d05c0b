"""Threshold search by mean squared error (HPTQ, arXiv 2109.09113): power-of-two, or free.

Candidates are searched exhaustively: they are few. Signed grids cover [-t, t - scale], unsigned ones [0, t - scale].

How the candidates come about is the clipping:
- mse: all that are worth a try. With free scales this is OMSE (Choukroun et al., arXiv 1902.06822), whose scale is
  the line search of the same error, one scale to an output channel of a weight and one to an activation.
- aciq: two, what ACIQ derives for a Laplace and for a normal distribution; for weights also max's.
- max: one, which cuts nothing off; with ranges from batch normalization that is DFQ's beta ± 6 gamma.
Power-of-two schemes round them: aciq's to the nearest power of two (by ratio), max's up.
"""

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from onnxdfq.calibration.aciq import clipping_values
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.recipe.choices import Clipping, Scales
from passes.quantize.grid import SMALLEST_THRESHOLD, covering_power_of_two, integer_range, scale_of
from passes.quantize.plan import TensorQuant

# How many powers of two are compared, from twice the one that clips nothing down.
WEIGHT_HALVINGS = 10
ACTIVATION_HALVINGS = 20
FREE_RATIOS = np.arange(1, 101) / 100  # of the threshold that clips nothing
LEAST_WEIGHT_RATIO = 0.2


def activation_candidates(
    points: Float64[NDArray[np.float64], "n"], bits: int, scheme: Scales
) -> Float64[NDArray[np.float64], "k"]:
    """The thresholds that are compared for an activation, in the activation's own unit.

    Powers of two from the greatest down, free ones from the least up.

    Args:
        points: Where its values lie, in its own unit.
        bits: Of the grid.
        scheme: Which thresholds there are.
    """
    greatest = float(np.abs(points).max(initial=0.0))
    if scheme != "free":
        candidates = 2 * covering_power_of_two(greatest) * 0.5 ** np.arange(ACTIVATION_HALVINGS)
    else:
        # the greatest point of the grid lies one scale below the threshold: reach to where nothing is clipped
        candidates = FREE_RATIOS * greatest * (1 + 2.0 ** -(bits - 1))
    return np.maximum(candidates, SMALLEST_THRESHOLD)


def squared_error(
    points: Float64[NDArray[np.float64], "k"], counts: Int64[NDArray[np.int64], "k"], quant: TensorQuant
) -> float:
    """Sum of the squared rounding and clipping errors over a histogram: points and their counts."""
    return float(np.square(quant.round_trip(points) - points) @ counts)


def activation_threshold(
    histogram: Histogram, bits: int, scheme: Scales, *, signed: bool, limit: float | None, clipping: Clipping = "mse"
) -> float:
    """The threshold of an activation with the least squared error over its histogram, of the clipping's candidates.

    Args:
        histogram: Of the activation.
        bits: Of the grid.
        scheme: Which thresholds there are.
        signed: Whether the grid has a sign.
        limit: What the threshold may be at most, in the activation's own unit.
        clipping: Where the candidates come from.
    """
    points, counts = histogram.points()
    greatest = histogram.magnitude
    by_distribution = None
    if clipping == "aciq":
        by_distribution = clipping_values(points, counts.astype(np.float64), bits, signed=signed)
    if clipping == "mse":
        candidates = activation_candidates(points, bits, scheme)
    elif by_distribution is not None:
        candidates = _as_scheme(np.minimum(by_distribution, greatest), rounds=scheme != "free")
    else:
        candidates = activation_candidates(np.array([greatest]), bits, scheme)
        candidates = candidates[[1 if scheme != "free" else -1]]
    if limit is not None:
        candidates = np.minimum(candidates, limit)
    errors = [
        squared_error(points, counts, TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold)))
        for threshold in candidates
    ]
    return float(candidates[np.argmin(errors)])


def weight_thresholds(
    weight: Float32[NDArray[np.float32], "..."],
    bits: int,
    scheme: Scales,
    *,
    axis: int | None,
    narrow: bool = False,
    clipping: Clipping = "mse",
) -> Float64[NDArray[np.float64], "*channels"] | np.float64:
    """The thresholds of a weight with the least squared error, of the clipping's candidates; on a grid with sign.

    Args:
        weight: Of any shape.
        bits: Of the grid.
        scheme: Which thresholds there are.
        axis: Of the C channels that get a threshold each; None for one in all.
        narrow: Whether the grid is symmetric, without its least integer.
        clipping: Where the candidates come from.

    Returns:
        () or (C,) float64 in the weight's own unit.
    """
    rows = torch.from_numpy(np.array(weight, np.float32))  # a copy: the model's own data is not writable
    rows = rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).flatten(1)  # (C, K)
    least, greatest = torch.aminmax(rows, dim=1)
    # the greatest point of the grid is t - scale, so the largest positive weight asks for a little more than itself
    half = 2.0 ** (bits - 1)
    reach = half / max(half - 1, 1)
    magnitude = torch.maximum(-least * (reach if narrow else 1), greatest * reach).double().numpy()  # (C,)
    by_distribution = None
    if clipping == "aciq":
        points = rows.double().numpy()
        by_distribution = clipping_values(points, np.ones_like(points), bits, signed=True)
    if by_distribution is not None:
        # of a handful of weights no distribution can be told: there it may be best to cut nothing off
        candidates = _as_scheme(
            np.vstack([np.minimum(by_distribution, magnitude), magnitude]), rounds=scheme == "power-of-two"
        )
    elif scheme == "power-of-two":
        candidates = 2 * covering_power_of_two(magnitude) * 0.5 ** np.arange(WEIGHT_HALVINGS)[:, None]
        candidates = candidates if clipping == "mse" else candidates[1:2]
    else:
        candidates = magnitude * FREE_RATIOS[FREE_RATIOS >= LEAST_WEIGHT_RATIO, None]
        candidates = candidates if clipping == "mse" else candidates[-1:]
    candidates = np.maximum(candidates, SMALLEST_THRESHOLD)  # (candidates, C)
    low, high = integer_range(bits, signed=True)
    low += narrow
    errors = np.empty(candidates.shape)
    for index, thresholds in enumerate(candidates):
        scale = torch.from_numpy(scale_of(thresholds, bits, signed=True)).float()[:, None]
        rounded = (rows / scale).round_().clamp_(low, high).mul_(scale)
        errors[index] = (rounded - rows).square_().sum(dim=1).numpy()
    best: NDArray[np.float64] = candidates[errors.argmin(axis=0), np.arange(candidates.shape[1])]
    return best[0] if axis is None else best


def _as_scheme(
    thresholds: Float64[NDArray[np.float64], "*shape"], *, rounds: bool
) -> Float64[NDArray[np.float64], "*shape"]:
    """Positive thresholds, as they are or as the nearest powers of two by ratio; same shape."""
    positive = np.maximum(thresholds, SMALLEST_THRESHOLD)
    return np.exp2(np.rint(np.log2(positive))) if rounds else positive
