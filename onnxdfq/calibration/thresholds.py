"""Threshold search by mean squared error (HPTQ, arXiv 2109.09113): power-of-two, or free.

Candidates are searched exhaustively: they are few. Signed grids cover [-t, t - scale], unsigned ones [0, t - scale].
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from onnxdfq.calibration.histogram import Histogram
from passes.power_of_two import SMALLEST_THRESHOLD, covering_power_of_two, integer_range, scale_of
from passes.quant_plan import TensorQuant

Scheme = Literal["power-of-two", "free"]

WEIGHT_HALVINGS = 10
ACTIVATION_HALVINGS = 20
FREE_RATIOS = np.arange(1, 101) / 100


def activation_candidates(points: NDArray[np.float64], bits: int, scheme: str) -> NDArray[np.float64]:
    """Thresholds worth a try for values that lie at `points`, greatest first or last."""
    greatest = float(np.abs(points).max(initial=0.0))
    if scheme == "power-of-two":
        candidates = 2 * covering_power_of_two(greatest) * 0.5 ** np.arange(ACTIVATION_HALVINGS)
    else:
        # the greatest positive step lies one scale below the threshold: reach to where nothing is clipped
        candidates = FREE_RATIOS * greatest * (1 + 2.0 ** -(bits - 1))
    return np.maximum(candidates, SMALLEST_THRESHOLD)


def squared_error(points: NDArray[np.float64], counts: NDArray[np.int64], quant: TensorQuant) -> float:
    """Sum over the histogram of the squared rounding and clipping error."""
    return float(np.square(quant.round_trip(points) - points) @ counts)


def activation_threshold(
    histogram: Histogram, bits: int, scheme: Scheme, *, signed: bool, limit: float | None
) -> float:
    """The threshold with the least squared error over the histogram. It is at most `limit` where that is given."""
    points, counts = histogram.points()
    candidates = activation_candidates(points, bits, scheme)
    if limit is not None:
        candidates = np.minimum(candidates, limit)
    errors = [
        squared_error(points, counts, TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold)))
        for threshold in candidates
    ]
    return float(candidates[np.argmin(errors)])


def weight_thresholds(
    weight: NDArray[np.float32], bits: int, scheme: Scheme, *, axis: int | None
) -> NDArray[np.float64]:
    """Thresholds with the least squared error, () or (C,) along `axis`; signed, as all weights are."""
    rows = torch.from_numpy(np.array(weight, np.float32))  # a copy: the model's own data is not writable
    rows = rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).flatten(1)  # (C, K)
    least, greatest = torch.aminmax(rows, dim=1)
    # the greatest positive step is t - scale, so the largest positive weight asks for a little more than itself
    half = 2.0 ** (bits - 1)
    magnitude = torch.maximum(-least, greatest * half / max(half - 1, 1)).double().numpy()  # (C,)
    if scheme == "power-of-two":
        candidates = 2 * covering_power_of_two(magnitude) * 0.5 ** np.arange(WEIGHT_HALVINGS)[:, None]
    else:
        candidates = magnitude * FREE_RATIOS[FREE_RATIOS >= 0.2, None]
    candidates = np.maximum(candidates, SMALLEST_THRESHOLD)  # (candidates, C)
    low, high = integer_range(bits, signed=True)
    errors = np.empty(candidates.shape)
    for index, thresholds in enumerate(candidates):
        scale = torch.from_numpy(scale_of(thresholds, bits, signed=True)).float()[:, None]
        rounded = (rows / scale).round_().clamp_(low, high).mul_(scale)
        errors[index] = (rounded - rows).square_().sum(dim=1).numpy()
    best: NDArray[np.float64] = candidates[errors.argmin(axis=0), np.arange(candidates.shape[1])]
    return best[0] if axis is None else best
