"""How a network's inputs were normalised."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from onnxdfq.errors import DataError

MOST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """x = (byte / 255 - mean) / std, per channel. One number stands for every channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if not self.mean or not self.std or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise DataError(f"The normalization {self} is none: means are numbers, deviations are above 0.")
        if max(map(abs, self.mean)) > MOST or not 1 / MOST <= min(self.std) <= max(self.std) <= MOST:
            raise DataError(
                f"The normalization {self} is out of all proportion: means are at most {MOST:,} either way, deviations "
                f"{1 / MOST:g} to {MOST:,}."
            )
        if len({len(self.mean), len(self.std)} - {1}) > 1:
            raise DataError(f"The normalization {self} has {len(self.mean)} means and {len(self.std)} deviations.")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`imagenet`, `cifar10`, `none` or `M1,M2,M3/S1,S2,S3` (of the unit range). Raises DataError."""
        means, slash, deviations = PRESETS.get(text.strip().lower(), text).partition("/")
        try:
            if not slash:
                raise ValueError(text)
            mean = tuple(float(number) for number in means.split(","))
            std = tuple(float(number) for number in deviations.split(","))
        except ValueError as error:
            raise DataError(
                f"--normalize {text!r} is not one of {', '.join(PRESETS)} or M1,M2,M3/S1,S2,S3; "
                "images of 0 to 255 as they are: 0/0.00392156862745098."
            ) from error
        return cls(mean=mean, std=std)

    def __str__(self) -> str:
        """What `parse` reads back: a preset's name where it is one."""
        text = "/".join(",".join(map(repr, numbers)) for numbers in (self.mean, self.std))
        return next((name for name, preset in PRESETS.items() if preset == text), text)

    def inverted(self, images: Float32[NDArray[np.float32], "n c h w"]) -> UInt8[NDArray[np.uint8], "n h w c"]:
        """Numbers in the model's unit to the nearest bytes."""
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (self.mean, self.std))
        bytes_ = np.clip(np.rint(255 * (images * std + mean)), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(bytes_.transpose(0, 2, 3, 1))

    def __call__(self, images: UInt8[NDArray[np.uint8], "n h w c"]) -> Float32[NDArray[np.float32], "n c h w"]:
        """Bytes to numbers in the model's unit. Raises DataError when the channels do not fit."""
        for numbers in (self.mean, self.std):
            if len(numbers) not in (1, images.shape[3]):
                raise DataError(f"The normalization {self} has {len(numbers)} channels, the images {images.shape[3]}.")
        # Folded into one multiplication and one addition in double precision: exact to float32 rounding.
        std = np.array(self.std)
        scale = (1 / (255 * std)).astype(np.float32)
        offset = (-np.array(self.mean) / std).astype(np.float32)
        return np.ascontiguousarray((images * scale + offset).transpose(0, 3, 1, 2), dtype=np.float32)


PRESETS = {
    "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225",
    "cifar10": "0.4914,0.4822,0.4465/0.2023,0.1994,0.201",
    "none": "0.0/1.0",
}
