"""What is seen of values while both networks run: the numbers of the float one, and the noise in the quantized one."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.calibration.histogram import Histogram

LEAST, MOST = 1e-30, 1e30  # of a sum of squares in float32


@dataclass(frozen=True, kw_only=True)
class Level:
    """Of one value. signal: mean square in the float network. noise: mean square of its error in the quantized one,
    from all that is quantized before; 0 where the value has another shape there."""

    signal: float
    noise: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Of one value of the float network.

    points, counts: (K,), its histogram, in its own unit. least, greatest: of its numbers. channels: (C,), the greatest
    magnitude in each channel; powers: (C,), their mean squares; None where there are no channels. signal: mean square.
    """

    points: Float64[NDArray[np.float64], "k"]
    counts: Int64[NDArray[np.int64], "k"]
    least: float
    greatest: float
    channels: Float64[NDArray[np.float64], "c"] | None
    powers: Float64[NDArray[np.float64], "c"] | None
    signal: float

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return int(self.counts.sum())


class Sums:
    """Of one value, over batches. closely: whether all of `Evidence` is asked for, or `Level` alone."""

    def __init__(self, *, closely: bool) -> None:
        self.usable = True
        self._histogram = Histogram() if closely else None
        self._channels: NDArray[np.float64] | None = None
        self._powers: NDArray[np.float64] | None = None
        self._signal = self._noise = 0.0
        self._count = 0

    def add(self, value: Tensor, other: Tensor) -> None:
        """A batch of the float network and of the quantized one; with NaN or infinity the whole is of no use."""
        if not self.usable or not value.is_floating_point() or not value.numel():
            self.usable = False
            return
        signal = _energy(value)
        if not np.isfinite(signal):
            self.usable = False
            return
        self._signal += signal
        self._count += value.numel()
        if other.shape == value.shape:
            self._noise += _energy(other - value)
        if self._histogram is not None:
            self._histogram.add(value)
            self._add_channels(value)

    def _add_channels(self, value: Tensor) -> None:
        if value.ndim < 2:
            return
        axis = value.ndim - 1 if value.ndim == 3 else 1  # (N, tokens, C), else (N, C, ...)
        rows = value.movedim(axis, 1).reshape(len(value), value.shape[axis], -1)
        ends = torch.maximum(rows.amax((0, 2)), -rows.amin((0, 2)))
        greatest, powers = ends.double().cpu().numpy(), _energies(rows).cpu().numpy()
        if self._channels is None or self._powers is None:
            self._channels, self._powers = greatest, powers
        elif len(self._channels) == len(greatest):
            self._channels, self._powers = np.maximum(self._channels, greatest), self._powers + powers

    @property
    def level(self) -> Level:
        """Of what was added."""
        count = max(self._count, 1)
        return Level(signal=self._signal / count, noise=self._noise / count)

    @property
    def evidence(self) -> Evidence | None:
        """Of what was added; None where it was not looked at closely."""
        if self._histogram is None:
            return None
        points, counts = self._histogram.points()
        return Evidence(
            points=points,
            counts=counts,
            least=float(self._histogram.least),
            greatest=float(self._histogram.greatest),
            channels=self._channels,
            powers=None if self._powers is None else self._powers * len(self._powers) / max(self._count, 1),
            signal=self.level.signal,
        )


def decibel(noise: float, signal: float) -> float | None:
    """Signal over noise; None where there is none of either, or it is infinite."""
    return 10 * float(np.log10(signal / noise)) if 0 < noise < np.inf and 0 < signal < np.inf else None


def _energy(values: Tensor) -> float:
    flat = values.reshape(-1)
    found = float(torch.dot(flat, flat))  # ten times as fast as in float64
    return found if LEAST < found < MOST else float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2


def _energies(rows: Float[Tensor, "n c k"]) -> Float64[Tensor, "c"]:
    """Of each channel."""
    found: Tensor = torch.linalg.vector_norm(rows, dim=2).double().square().sum(0)
    if not bool(((found > LEAST) & (found < MOST)).all()):
        found = torch.linalg.vector_norm(rows, dim=2, dtype=torch.float64).square().sum(0)
    return found
