"""Shards of images: `merge_images`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxdfq.errors import InputError
from onnxdfq.model_file import check_writable
from onnxdfq.model_file.writing import atomic_write

if TYPE_CHECKING:
    from onnxdfq.images.images import Images
    from onnxdfq.images.merging import Merged


def merge_images(folder: Path | str, *, output: Path | str | None = None, force: bool = False) -> Images:
    """The shards of one synthesis as the images of one run, to the same bytes where its batches do not depend on one
    another.

    Args:
        folder: where all shards lie, and no other .npz file; see `shard` of `synthesize`.
        output: the .npz file to write; by default none. It lies in another folder.
        force: replace a file that exists.

    Raises:
        DataError: a shard is missing, is there twice, or does not belong to the others.
        InputError: the output would lie among the shards. OutputError: it cannot be written.
    """
    return merge_into(folder, None if output is None else Path(output), force=force).images


def merge_into(folder: Path | str, place: Path | None, *, force: bool) -> Merged:
    """The same, with one shard in memory at a time."""
    from onnxdfq.images.merging import Merged

    folder = Path(folder)
    if place is not None:
        check_writable(place, force=force)
        if place.parent.resolve() == folder.resolve():
            raise InputError(f"{place} would lie among the shards; give a name in another folder with -o.")
    merged = Merged.of(folder)
    if place is not None:
        with atomic_write(place, force=force) as temporary:
            merged.save(temporary)
    return merged
