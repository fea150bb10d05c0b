"""Images: what a synthesis method delivers, with what is needed to make the same bytes again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.archive import IMAGES, ArrayFile
from onnxdfq.images.samples import Samples

LABELS = "labels"
ABOUT_ALL = ("method", "seed", "provenance")
PREFIX = "input:"
"""In front of an input's name in a file of samples."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Calibration images, or other samples, in the model's own input units.

    Attributes:
        pixels: (N, ...) of the model's main input, in its own layout and type, as a rule float32 (N, C, H, W); finite,
            N >= 1.
        others: By input name, (N, ...) of the other inputs.
        pictures: uint8 (N, H, W, C), the same as `pixels` before any model's normalization, where images are made for
            several models; None where they are for one.
        labels: (N,), what the images were asked to show; None where nothing was asked.
        method: The name of what made them, "file" for images of the user's own.
        seed: What they were drawn from.
        provenance: Plain strings (model hash, settings, precision, library versions).

    Raises:
        DataError: The arrays are no such thing.
    """

    pixels: NDArray[Any]
    method: str
    seed: int
    provenance: dict[str, str] = field(default_factory=dict)
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    pictures: NDArray[np.uint8] | None = None
    labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if not shape or 0 in shape or (dtype.kind not in "fiub" and dtype.itemsize != 2):
            raise DataError(f"Images must be numbers (N, ...) with no empty axis; these are {dtype} {shape}.")
        if any(len(array) != len(self) for array in self.others.values()):
            raise DataError("Each input needs an array of as many samples.")
        floats = [array for array in (self.pixels, *self.others.values()) if np.issubdtype(array.dtype, np.floating)]
        if not all(np.isfinite(array).all() for array in floats):
            raise DataError("The images hold NaN or infinity.")

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def samples(self) -> Samples:
        """All inputs, as a network is run on them."""
        return Samples(main=self.pixels, others=self.others)

    def identity(self) -> tuple[str | NDArray[Any], ...]:
        """What tells them from others, for keys of what rests on them."""
        return self.pixels, *self.others.values()

    def first(self, count: int) -> "Images":
        """The first `count` of them; all, where there are fewer."""
        return self if count >= len(self) else self.taken(slice(count))

    def taken(self, rows: slice | NDArray[np.integer[Any]]) -> "Images":
        """Those at `rows`, in that order; a slice copies nothing."""
        return replace(
            self,
            pixels=self.pixels[rows],
            others={name: array[rows] for name, array in self.others.items()},
            pictures=None if self.pictures is None else self.pictures[rows],
            labels=None if self.labels is None else self.labels[rows],
        )

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `save` writes, in order. Of `ABOUT_ALL` there is one for all samples, and else a row for each."""
        arrays = {PREFIX + name: array for name, array in self.others.items()}
        arrays |= {
            IMAGES: self.pixels if self.pictures is None else self.pictures,
            "method": np.array(self.method),
            "seed": np.array(self.seed),
            "provenance": np.array(json.dumps(self.provenance, sort_keys=True)),
        }
        return arrays | ({} if self.labels is None else {LABELS: self.labels})

    def save(self, path: Path) -> None:
        """Write an .npz of plain arrays: `images`, so that `evaluate` reads the file as data too, `labels` where there
        are some, and other inputs by their names. Pictures are written as bytes, which any model normalises itself."""
        with path.open("wb") as stream:  # an open file: given a name, np.savez would add .npz to it
            np.savez(stream, **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Images":
        """Read what `save` wrote. Raises DataError when the file is something else, or would need pickle."""
        file = ArrayFile(path)
        if missing := [name for name in (IMAGES, *ABOUT_ALL) if name not in file]:
            raise DataError(f"{path} is not a file of synthesised images: it has no {' and no '.join(missing)}.")
        try:
            provenance = json.loads(str(file["provenance"]))
            return cls(
                pixels=file[IMAGES],
                method=str(file["method"]),
                seed=int(file["seed"]),
                provenance={str(key): str(value) for key, value in provenance.items()},
                labels=file.get(LABELS),
                others={key.removeprefix(PREFIX): file[key] for key in file if key.startswith(PREFIX)},
            )
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is not a file of synthesised images: {error}.") from error
