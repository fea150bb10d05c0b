"""What two runs of the network show of each quantizer: the numbers that it was given, and the noise behind it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.calibration.histogram import Histogram
from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.samples import SamplesLike
from onnxdfq.report.diagnosis.sweep import BATCH_SIZE
from onnxdfq.report.diagnosis.switches import Network, Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Of one value of the float network.

    points, counts: (K,), its histogram, in its own unit. least, greatest: of its numbers. channels: (C,), the greatest
    magnitude in each channel; powers: (C,), their mean squares; None where there are no channels. signal: mean square.
    noise: mean square of its error in the quantized network, from all that is quantized before.
    """

    points: Float64[NDArray[np.float64], "k"]
    counts: Int64[NDArray[np.int64], "k"]
    least: float
    greatest: float
    channels: Float64[NDArray[np.float64], "c"] | None
    powers: Float64[NDArray[np.float64], "c"] | None
    signal: float
    noise: float

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return int(self.counts.sum())


def gather(network: Network, samples: SamplesLike, names: Iterable[str]) -> dict[str, Evidence]:
    """Evidence of the values of these names; of those that hold NaN or infinity there is none.

    Both networks run side by side, so that memory holds the values at one point of the graph alone.

    Args:
        network: To look at.
        samples: In the model's input units.
        names: Of values.

    Raises:
        DataError: The samples do not fit the model's input.
    """
    wanted = list(dict.fromkeys(names))
    feeds = Feeds(network.model)
    exact, noisy = (network.graph(feeds.names, wanted) for _ in range(2))
    found = {name: _Sums() for name in wanted}
    for batch in feeds.batches(feeds.names, samples, BATCH_SIZE, network.device):
        values: Values = dict(zip(feeds.names, batch, strict=True))
        pairs = zip(exact.stream(values, frozenset()), noisy.stream(values, network.everything), strict=True)
        for (name, value), (_, other) in pairs:
            found[name].add(value, other)
    return {name: sums.evidence() for name, sums in found.items() if sums.usable}


class _Sums:
    """Over batches."""

    def __init__(self) -> None:
        self.usable = True
        self._histogram = Histogram()
        self._channels: NDArray[np.float64] | None = None
        self._powers: NDArray[np.float64] | None = None
        self._signal = self._noise = 0.0

    def add(self, value: Tensor, other: Tensor) -> None:
        if not value.is_floating_point() or not value.numel() or not bool(torch.isfinite(value).all()):
            self.usable = False
            return
        self._histogram.add(value)
        value = value.double()
        self._signal += float(value.square().sum())
        if other.shape == value.shape:
            self._noise += float((other.double() - value).square().sum())
        if value.ndim > 1:
            axis = value.ndim - 1 if value.ndim == 3 else 1  # (N, tokens, C), else (N, C, ...)
            rows = value.movedim(axis, 0).flatten(1)
            greatest, powers = rows.abs().amax(dim=1).cpu().numpy(), rows.square().sum(dim=1).cpu().numpy()
            if self._channels is None or self._powers is None:
                self._channels, self._powers = greatest, powers
            elif len(self._channels) == len(greatest):
                self._channels, self._powers = np.maximum(self._channels, greatest), self._powers + powers

    def evidence(self) -> Evidence:
        points, counts = self._histogram.points()
        total = max(int(counts.sum()), 1)
        return Evidence(
            points=points,
            counts=counts,
            least=float(self._histogram.least),
            greatest=float(self._histogram.greatest),
            channels=self._channels,
            powers=None if self._powers is None else self._powers * len(self._powers) / total,
            signal=self._signal / total,
            noise=self._noise / total,
        )


def decibel(noise: float, signal: float) -> float | None:
    """Signal over noise; None where there is none of either, or it is infinite."""
    return 10 * float(np.log10(signal / noise)) if 0 < noise < np.inf and 0 < signal < np.inf else None
