"""Shards of one synthesis, made by runs of their own, as the one file that an unsharded run would have written."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxdfq.errors import DataError, InputError
from onnxdfq.images.archive import IMAGES, ArrayFile
from onnxdfq.images.images import ABOUT_ALL, LABELS, PREFIX, Images
from onnxdfq.images.shards import SUFFIX, shard_files
from onnxdfq.recipe.shard import Shard
from onnxdfq.shown import some

SHARD, ROWS, SHARDS = "shard", "rows", "shards"
OWN = {"model": "for the model", "recipe": "with the recipe", "onnxdfq": "by onnxdfq"}
"""Entries of the provenance that shards alone have, beside the two above; and how a message calls them."""
NAMED = 5  # of those that are missing


def shard_origin(shard: Shard, first: int, count: int) -> dict[str, str]:
    """What the provenance of a shard says of its place. first: the number of its first image. count: its images."""
    return {SHARD: str(shard), ROWS: f"{first}:{first + count}"}


def rows_of(images: Images) -> slice:
    """Which images of all they are; all, where they are no shard. Raises DataError where their provenance is odd."""
    if ROWS not in images.provenance:
        return slice(0, len(images))
    first, _, end = images.provenance[ROWS].partition(":")
    if not all(part.isdecimal() and len(part) < 9 for part in (first, end)):
        raise DataError(f"The rows of a shard are {images.provenance[ROWS]!r}; it was changed.")
    return slice(int(first), int(end))


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A shard, whose arrays are on the disk. first: its first image. facts: what all shards have in common, as messages
    call it. rows: which of all images its own are. count: of its images."""

    file: Path
    shard: Shard
    first: Images
    facts: Mapping[str, str]
    rows: slice
    count: int

    @classmethod
    def load(cls, file: Path) -> "_Part":
        images = Images.load(file)
        if SHARD not in images.provenance:
            raise DataError(f"{file} is no shard; those are written by synthesize with --shard K/N.")
        try:
            shard = Shard.parse(images.provenance[SHARD])
        except InputError as error:
            raise DataError(f"{file} is no shard: {error}") from error
        return cls(
            file=file,
            shard=shard,
            first=images.taken(np.array([0])),  # a copy, which keeps the others from memory
            facts=_facts(images, shard),
            rows=rows_of(images),
            count=len(images),
        )

    def array(self, name: str, like: NDArray[Any]) -> NDArray[Any]:
        """One of `Images.arrays`. Raises DataError where it is no longer what it was. like: of the first shard."""
        found = ArrayFile(self.file)[name]
        if found.dtype != like.dtype or found.shape != (self.count, *like.shape[1:]):
            raise DataError(f"{self.file} was changed while it was read.")
        return found


@dataclass(frozen=True, kw_only=True)
class Merged:
    """All shards of a synthesis as one, of which one is in memory at a time. first: the first image of all."""

    first: Images
    parts: Sequence[_Part]

    @classmethod
    def of(cls, folder: Path) -> "Merged":
        """Those that lie in a folder.

        Raises:
            DataError: One is missing, is there twice, was made with another seed, model, recipe or version, or is none.
        """
        files = shard_files(folder)
        if not files:
            raise DataError(f"{folder} is no folder with {SUFFIX} files; give one of shards (synthesize --shard K/N).")
        parts = sorted(map(_Part.load, files), key=lambda part: (part.shard.number, part.file))
        _check_alike(parts)
        _check_complete(parts, folder)
        _check_rows(parts)
        own = {SHARD, ROWS, *OWN}
        first = parts[0].first
        provenance = {key: value for key, value in first.provenance.items() if key not in own}
        return cls(first=replace(first, provenance=provenance), parts=parts)

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def images(self) -> Images:
        """The same arrays as of a run without shards, in memory. Raises DataError: a shard was changed."""
        found = {name: self._filled(name, one) for name, one in self.first.arrays.items() if name not in ABOUT_ALL}
        return replace(
            self.first,
            pixels=found[IMAGES],
            others={name: found[PREFIX + name] for name in self.first.others},
            labels=found.get(LABELS),
        )

    def save(self, path: Path) -> None:
        """The file that `Images.save` would write of all, a shard at a time. Raises DataError: one was changed."""
        with path.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
            for name, one in self.first.arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:  # as np.savez does
                    if name in ABOUT_ALL:
                        npy.write_array(entry, one, allow_pickle=False)
                        continue
                    npy.write_array_header_1_0(
                        entry,
                        {
                            "descr": npy.dtype_to_descr(one.dtype),
                            "fortran_order": False,
                            "shape": (len(self), *one.shape[1:]),
                        },
                    )
                    for part in self.parts:
                        rows = np.ascontiguousarray(part.array(name, one))
                        entry.write(rows.reshape(-1).view(np.uint8).data)

    def _filled(self, name: str, one: NDArray[Any]) -> NDArray[Any]:
        found = np.empty((len(self), *one.shape[1:]), one.dtype)
        for part in self.parts:
            found[part.rows] = part.array(name, one)
        return found


def _check_alike(parts: Sequence[_Part]) -> None:
    """All came of the same command, but for the shard."""
    first = parts[0]
    wanted = first.facts
    for part in parts[1:]:
        found = part.facts
        for what in [*wanted, *(found.keys() - wanted.keys())]:
            if found.get(what) != wanted.get(what):
                raise DataError(
                    f"{part.file} was made {what} {found.get(what)}, and {first.file} {what} {wanted.get(what)}; make "
                    "all shards by the same command, but for --shard."
                )


def _facts(images: Images, shard: Shard) -> dict[str, str]:
    """What has to be the same, as messages call it."""
    arrays = {IMAGES: images.pixels, **images.others}
    if images.labels is not None:
        arrays[LABELS] = images.labels
    found = {
        "in a number of shards of": str(shard.count),
        "by the method": images.method,
        "with the seed": str(images.seed),
    }
    found |= {said: images.provenance.get(key, "none") for key, said in OWN.items()}
    rest = {key: value for key, value in images.provenance.items() if key not in {SHARD, ROWS, *OWN}}
    found |= {f"with {key}": value for key, value in sorted(rest.items())}
    return found | {f"with {name} of": f"{one.dtype} {list(one.shape[1:])}" for name, one in arrays.items()}


def _check_complete(parts: Sequence[_Part], folder: Path) -> None:
    files: dict[int, Path] = {}
    for part in parts:
        if (other := files.setdefault(part.shard.number, part.file)) != part.file:
            raise DataError(f"{other} and {part.file} are both the shard {part.shard}; take one of them away.")
    count = parts[0].shard.count
    if missing := [number for number in range(1, count + 1) if number not in files]:
        named = some([f"{number}/{count}" for number in missing], NAMED)
        raise DataError(f"{folder} lacks the shard {named}; make it with synthesize --shard {missing[0]}/{count}.")


def _check_rows(parts: Sequence[_Part]) -> None:
    """Each begins where the one before it ends."""
    end = 0
    for part in parts:
        if part.rows.start != end or part.rows.stop - end != part.count:
            raise DataError(f"{part.file} has other images than a shard {part.shard} has; make it anew.")
        end = part.rows.stop
