"""Shards of one synthesis, made by runs of their own, as the one file that an unsharded run would have written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxdfq.errors import DataError, InputError
from onnxdfq.images.images import Images
from onnxdfq.images.shards import SUFFIX, shard_files
from onnxdfq.recipe.shard import Shard

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    file: Path
    shard: Shard
    images: Images

    @classmethod
    def load(cls, file: Path) -> "_Part":
        images = Images.load(file)
        if SHARD not in images.provenance:
            raise DataError(f"{file} is no shard; those are written by synthesize with --shard K/N.")
        try:
            return cls(file=file, shard=Shard.parse(images.provenance[SHARD]), images=images)
        except InputError as error:
            raise DataError(f"{file} is no shard: {error}") from error


def merged(folder: Path) -> Images:
    """All shards that lie in a folder as one, the same arrays as of a run without shards.

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
    first = parts[0].images
    everything = [part.images for part in parts]
    provenance = {key: value for key, value in first.provenance.items() if key not in {SHARD, ROWS, *OWN}}
    labels = [images.labels for images in everything if images.labels is not None]
    return replace(
        first,
        pixels=np.concatenate([images.pixels for images in everything]),
        others={name: np.concatenate([images.others[name] for images in everything]) for name in first.others},
        labels=np.concatenate(labels) if labels else None,
        provenance=provenance,
    )


def _check_alike(parts: Sequence[_Part]) -> None:
    """All came of the same command, but for the shard."""
    first = parts[0]
    wanted = _facts(first)
    for part in parts[1:]:
        found = _facts(part)
        for what in [*wanted, *(found.keys() - wanted.keys())]:
            if found.get(what) != wanted.get(what):
                raise DataError(
                    f"{part.file} was made {what} {found.get(what)}, and {first.file} {what} {wanted.get(what)}; make "
                    "all shards by the same command, but for --shard."
                )


def _facts(part: _Part) -> dict[str, str]:
    """What has to be the same, as messages call it."""
    images = part.images
    arrays = {"images": images.pixels, **images.others}
    if images.labels is not None:
        arrays["labels"] = images.labels
    found = {
        "in a number of shards of": str(part.shard.count),
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
        named = ", ".join(f"{number}/{count}" for number in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise DataError(
            f"{folder} lacks the shard {named}{more}; make it with synthesize --shard {missing[0]}/{count}."
        )


def _check_rows(parts: Sequence[_Part]) -> None:
    """Each begins where the one before it ends."""
    end = 0
    for part in parts:
        rows = rows_of(part.images)
        if rows.start != end or rows.stop - rows.start != len(part.images):
            raise DataError(f"{part.file} has other images than a shard {part.shard} has; make it anew.")
        end = rows.stop
