"""Samples in several files, of which one is in memory at a time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.dataset import load_dataset
from onnxdfq.images.normalization import Normalization
from onnxdfq.images.samples import Samples
from onnxdfq.model_file import InputSpec
from onnxdfq.paths import open_ordinary

SUFFIX = ".npz"
BLOCK = 2**20  # bytes that are read at once


def shard_files(source: Any) -> tuple[Path, ...]:
    """The files of samples in several files: a sequence of paths, or the .npz files of a folder by their names.

    None where it is something else.
    """
    if isinstance(source, str | Path):
        folder = Path(source)
        try:
            return tuple(sorted(file for file in folder.iterdir() if file.suffix == SUFFIX))
        except (OSError, ValueError):  # no folder, or one that is told of when it is read
            return ()
    if isinstance(source, list | tuple) and source and all(isinstance(one, str | Path) for one in source):
        return tuple(map(Path, source))
    return ()


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Files of samples as a network takes them, one behind the other.

    files: `.npz`, as `load_dataset` reads them. counts: how many samples of each are looked at, its first. spec,
    others: what the network takes. normalization: of bytes.
    """

    files: tuple[Path, ...]
    counts: tuple[int, ...]
    spec: InputSpec
    others: tuple[InputSpec, ...] = ()
    normalization: Normalization | None = None

    @classmethod
    def of(
        cls,
        files: Sequence[Path],
        spec: InputSpec,
        others: Sequence[InputSpec] = (),
        normalization: Normalization | None = None,
    ) -> Self:
        """All samples of these files, each of which is looked at once.

        Raises:
            DataError: One cannot be read, or does not fit the inputs.
        """
        empty = cls(
            files=tuple(files),
            counts=(-1,) * len(files),
            spec=spec,
            others=tuple(others),
            normalization=normalization,
        )
        return replace(empty, counts=tuple(len(empty.samples(part)) for part in range(len(files))))

    def __len__(self) -> int:
        return sum(self.counts)

    def samples(self, part: int) -> Samples:
        """Those of one file; nothing of it is kept here. Raises DataError as `of`."""
        data = load_dataset(self.files[part], spec=self.spec, others=self.others, normalization=self.normalization)
        found = next(data.samples(len(data)))
        return found if self.counts[part] < 0 else found[: self.counts[part]]

    def first(self, count: int) -> Samples:
        """The first `count` samples, or all where there are fewer. Raises DataError where files differ in size."""
        parts: list[Samples] = []
        for part in range(len(self.files)):
            if count <= 0:
                break
            parts.append(self.samples(part)[:count])
            count -= len(parts[-1])
        if len({one.main.shape[1:] for one in parts}) > 1:
            raise DataError("The files hold samples of different sizes; bring them to one first.")
        names = set.intersection(*(set(one.others) for one in parts))
        return Samples(
            main=np.concatenate([one.main for one in parts]),
            others={name: np.concatenate([one.others[name] for one in parts]) for name in sorted(names)},
        )

    def parted(self, count: int) -> tuple[Self, Samples | None]:
        """Without the last `count` of the last file, of which one stays; and these, None where there are none."""
        count = min(count, self.counts[-1] - 1)
        if count <= 0:
            return self, None
        kept = self.counts[-1] - count
        return replace(self, counts=(*self.counts[:-1], kept)), self.samples(len(self.files) - 1)[kept:]

    def identity(self) -> tuple[str | NDArray[Any], ...]:
        """What tells them from others, as `Images.identity` does."""
        return (self.digest(),)

    def digest(self) -> str:
        """SHA-256 of the bytes of all files and of how many samples are looked at, in hexadecimal."""
        found = hashlib.sha256(repr(self.counts).encode())
        for file in self.files:
            with open_ordinary(file, kind=DataError) as stream:
                while block := stream.read(BLOCK):
                    found.update(block)
        return found.hexdigest()
