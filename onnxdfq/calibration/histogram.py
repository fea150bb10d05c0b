"""A streamed histogram: one pass and bounded memory, whatever range the next batch brings."""

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

from passes.quantize.grid import covering_power_of_two

WIDEST = 2.0**126  # bound of which the width of the histogram, twice as much, is still finite in float32
BINS = 2**14  # the scale of 8 bits at an eighth of the greatest magnitude is then at least four bins wide


class Histogram:
    """Counts of one tensor's numbers over [-bound, bound], and the least and greatest of them.

    bound: a power of two, in the tensor's own unit. It grows by doubling, so that two old bins make exactly one new one
    and nothing already counted is smeared. counts: (BINS,).
    """

    def __init__(self) -> None:
        self.bound = 0.0
        self.counts = np.zeros(BINS, np.int64)
        self.least = np.inf
        self.greatest = -np.inf

    def add(self, values: Float[torch.Tensor, "..."]) -> None:
        """Count values of any shape and floating type. Raises ValueError when one is not finite."""
        if values.numel() == 0:
            return
        values = values.detach().float()
        low, high = (float(end) for end in torch.aminmax(values))
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("a value is infinite or not a number")
        self.least, self.greatest = min(self.least, low), max(self.greatest, high)
        needed = float(covering_power_of_two(max(-low, high)))
        if self.bound == 0.0:
            self.bound = needed
        while self.bound < needed:
            self._double()
        if self.bound > WIDEST:
            values = values.double()
        counts = torch.histc(values, BINS, -self.bound, self.bound)
        self.counts += counts.cpu().numpy().astype(np.int64)

    @property
    def magnitude(self) -> float:
        """The largest there was, in the tensor's own unit; 0 of nothing."""
        return max(-self.least, self.greatest, 0.0)

    def points(self) -> tuple[Float64[NDArray[np.float64], "k"], Int64[NDArray[np.int64], "k"]]:
        """Where the K bins that are not empty lie, in the tensor's own unit, and their counts.

        The bin that begins at zero stands for zero itself: after a Relu nearly all of it is.
        """
        width = 2 * self.bound / BINS
        centres = (np.arange(BINS) - BINS // 2 + 0.5) * width
        centres[BINS // 2] = 0.0
        filled = self.counts > 0
        return np.clip(centres[filled], self.least, self.greatest), self.counts[filled]

    def _double(self) -> None:
        quarter = BINS // 4
        merged = np.zeros_like(self.counts)
        merged[quarter:-quarter] = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts, self.bound = merged, 2 * self.bound
