"""`Spread`: the distribution of each channel of a value, as a function of a standard normal variable.

A channel is held as f(z) at fixed ABSCISSAE of a standard normal z with quadrature WEIGHTS that sum to one. So any
function of one number is applied point by point, and means and standard deviations are weighted sums.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

Array = NDArray[np.float64]

REACH = 6.0  # in standard deviations: DFQ (arXiv 1906.04721) takes beta ± 6 gamma for the range
ABSCISSAE: Array = np.linspace(-REACH, REACH, 193)  # sixteen to a standard deviation: means after Relu to 1e-4
WEIGHTS: Array = np.exp(-np.square(ABSCISSAE) / 2)
WEIGHTS /= WEIGHTS.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """The distribution of one value. points: (C, K) f(z) of each channel at the K abscissae, in the value's unit.

    origin: name of the normal variable z; values of one origin are fully dependent.
    approximate: whether more was assumed than that each channel in front of an activation function is normal.
    """

    points: Float64[Array, "c k"]
    origin: str
    approximate: bool = False

    @classmethod
    def normal(
        cls, mean: Float64[Array, "c"], std: Float64[Array, "c"], *, origin: str, approximate: bool = False
    ) -> "Spread":
        """Normal channels. mean, std: (C,)."""
        points = mean[..., None] + std[..., None] * ABSCISSAE
        return cls(points=points, origin=origin, approximate=approximate)

    @property
    def mean(self) -> Float64[Array, "c"]:
        """Of each channel."""
        return np.asarray(self.points @ WEIGHTS)

    @property
    def std(self) -> Float64[Array, "c"]:
        """Of each channel."""
        return np.sqrt(np.square(self.points - self.mean[..., None]) @ WEIGHTS)

    def mapped(self, function: Callable[[Array], Array]) -> "Spread":
        """`function` of the value, point by point."""
        return Spread(points=function(self.points), origin=self.origin, approximate=self.approximate)

    def reshaped(self, points: Float64[Array, "c k"], *, approximate: bool = False) -> "Spread":
        """The same variables in another order or number."""
        return Spread(points=points, origin=self.origin, approximate=self.approximate or approximate)


def sum_of(left: Spread, right: Spread, origin: str) -> Spread:
    """The spread of left + right: variances add, unless both have one origin."""
    if left.origin == right.origin:
        return left.reshaped(left.points + right.points, approximate=right.approximate)
    right = _alongside(right, left)
    points = left.points + right.points
    # The sum of points is that of fully dependent values: its mean is right, its deviation too large. Scaled about the
    # mean it has the right one, and stays within the bounds of the sum: non-negative values keep a non-negative sum.
    mean, std = left.mean + right.mean, np.hypot(left.std, right.std)
    return Spread(points=_with_std(points, mean, std), origin=origin, approximate=True)


def product_of(left: Spread, right: Spread, origin: str) -> Spread:
    """The spread of left * right, as of a gate: independent, unless both have one origin."""
    if left.origin == right.origin:
        return left.reshaped(left.points * right.points, approximate=right.approximate)
    mean = left.mean * right.mean
    std = np.sqrt(np.square(left.std * right.std) + np.square(left.std * right.mean) + np.square(left.mean * right.std))
    # the shape is that of the wider factor
    ratios = [np.max(side.std) / max(float(np.max(np.abs(side.mean))), 1e-12) for side in (left, right)]
    shape, other = (left, right) if ratios[0] >= ratios[1] else (right, left)
    return Spread(points=_with_std(shape.points * other.mean[..., None], mean, std), origin=origin, approximate=True)


def _alongside(spread: Spread, other: Spread) -> Spread:
    """The same distribution, each channel as a function of -z where it falls while that of `other` rises."""
    centred = [side.points - side.mean[..., None] for side in (spread, other)]
    falls = ((centred[0] * centred[1]) @ WEIGHTS < 0)[..., None]
    return spread.reshaped(np.where(falls, spread.points[..., ::-1], spread.points))


def _with_std(
    points: Float64[Array, "c k"], mean: Float64[Array, "c"], std: Float64[Array, "c"]
) -> Float64[Array, "c k"]:
    """The points, whose mean is `mean`, scaled about it to the standard deviation `std`."""
    deviations = points - mean[..., None]
    present = np.sqrt(np.square(deviations) @ WEIGHTS)
    ratio = np.divide(std, present, out=np.zeros_like(present), where=present > 0)
    return np.asarray(mean[..., None] + deviations * ratio[..., None])


# np has no erf
erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])
