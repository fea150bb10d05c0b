"""Where images come from: `ImageSource`, which methods hand to calibration, comparison and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxdfq.errors import DataError
from onnxdfq.images.images import Images

if TYPE_CHECKING:
    from torch import Tensor


class ImageSource(Protocol):
    """Images in the model's own input units."""

    def fixed(self, count: int) -> Images:
        """The first `count` images, the same at every call."""
        ...

    def batches(self, size: int, *, seed: int) -> Iterator[Tensor]:
        """An endless stream of batches, (size, C, H, W) float32, the same for the same seed."""
        ...


class FixedImages:
    """A source of so many images and no more: made once, when first asked for.

    make: count → that many images, or as many as there are. Streams draw from the images of the last call of `fixed`,
    each image once before any comes again.
    """

    def __init__(self, make: Callable[[int], Images]) -> None:
        self._make = make
        self._images: Images | None = None
        self._count = 0  # that was asked for; there may be fewer

    def fixed(self, count: int) -> Images:
        """See ImageSource. Raises what making them raises."""
        if self._images is None or count > self._count:
            self._images, self._count = self._make(count), count
        return self._images.first(count)

    def batches(self, size: int, *, seed: int) -> Iterator[Tensor]:
        """See ImageSource. Raises DataError where no image was made yet, or fewer than a batch takes."""
        import torch

        if self._images is None or len(self._images) < size:
            raise DataError(
                f"Batches take {size} images and there are {len(self._images or ())}; give more (--images)."
            )
        pixels, random = self._images.pixels, np.random.default_rng(seed)
        waiting = np.empty(0, np.int64)
        while True:
            while len(waiting) < size:
                waiting = np.concatenate([waiting, random.permutation(len(pixels))])
            yield torch.from_numpy(pixels[waiting[:size]])
            waiting = waiting[size:]
