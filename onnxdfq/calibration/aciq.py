"""ACIQ (Banner et al., arXiv 1810.05723): where to clip a normal or a Laplace distribution, in closed form."""

import numpy as np
from jaxtyping import Float, Float64, Real
from numpy.typing import NDArray

# Clipping values for 2 to 9 bits on a grid with sign: times the mean absolute deviation of a Laplace distribution, and
# times the standard deviation of a normal one. The authors' tables end at 8 bits: nine are the root of the paper's
# condition for Laplace, b exp(-a/b) = a / (3 * 4^bits), and the table continued for the normal distribution.
LAPLACE = {2: 2.83, 3: 3.89, 4: 5.03, 5: 6.2, 6: 7.41, 7: 8.64, 8: 9.89, 9: 11.16}
NORMAL = {2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92, 9: 4.2}


def clipping_values(
    points: Float[NDArray[np.floating], "*rows k"],
    weights: Real[NDArray[np.floating | np.integer], "*rows k"],
    bits: int,
    *,
    signed: bool,
) -> Float64[NDArray[np.float64], "2 *rows"] | None:
    """The thresholds that suit a Laplace and a normal distribution of the same deviation.

    Grids with sign are symmetric about zero here, so the mean comes on top. One without sign holds what Relu leaves of
    a distribution about zero: half of it, at the scale that one bit more would give the whole.

    Args:
        points: Rows of numbers.
        weights: How often each occurs.
        bits: Of the grid.
        signed: Whether it has a sign.

    Returns:
        For each row, in the unit of the points; None for bits that the tables lack (at 16 nothing is clipped).
    """
    if bits + (not signed) not in LAPLACE:
        return None
    if signed:
        total = np.maximum(weights.sum(axis=-1), 1e-300)
        mean = (points * weights).sum(axis=-1) / total
        deviations = np.abs(points - mean[..., None])
    else:
        weights = np.where(points > 0, weights, 0)
        total = np.maximum(weights.sum(axis=-1), 1e-300)
        mean, deviations = np.zeros(points.shape[:-1]), points
        bits += 1
    absolute = (deviations * weights).sum(axis=-1) / total
    standard = np.sqrt((np.square(deviations) * weights).sum(axis=-1) / total)
    return np.asarray(np.abs(mean) + np.stack([LAPLACE[bits] * absolute, NORMAL[bits] * standard]))
