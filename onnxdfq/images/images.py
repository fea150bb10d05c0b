"""Images: what a synthesis method delivers, with what is needed to make the same bytes again."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Images:
    """Calibration images in the model's own input units.

    pixels: (N, C, H, W) float32, finite, N >= 1. method: the name of what made them, "file" for images of the user's
    own. seed: what they were drawn from. provenance: plain strings (model hash, settings, precision, library versions).
    Raises DataError when the array is no such thing.
    """

    pixels: NDArray[np.float32]
    method: str
    seed: int
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if dtype != np.float32 or len(shape) != 4 or 0 in shape:
            raise DataError(f"images must be float32 (N, C, H, W) with no empty axis; these are {dtype} {shape}")
        if not np.isfinite(self.pixels).all():
            raise DataError("the images hold NaN or infinity")

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def first(self, count: int) -> "Images":
        """The first `count` of them; all, where there are fewer."""
        return self if count >= len(self) else replace(self, pixels=self.pixels[:count])

    def save(self, path: Path) -> None:
        """Write an .npz of four plain arrays, `images` among them, so that `evaluate` reads the file as data too."""
        with path.open("wb") as stream:  # an open file: given a name, np.savez would add .npz to it
            np.savez(
                stream,
                images=self.pixels,
                method=np.array(self.method),
                seed=np.array(self.seed),
                provenance=np.array(json.dumps(self.provenance, sort_keys=True)),
            )

    @classmethod
    def load(cls, path: Path) -> "Images":
        """Read what `save` wrote. Raises DataError when the file is something else, or would need pickle."""
        try:
            with np.load(path, allow_pickle=False) as file:
                provenance = json.loads(str(file["provenance"]))
                return cls(
                    pixels=file["images"],
                    method=str(file["method"]),
                    seed=int(file["seed"]),
                    provenance={str(key): str(value) for key, value in provenance.items()},
                )
        except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
            raise DataError(f"{path} is not a file of synthesised images ({error})") from error
