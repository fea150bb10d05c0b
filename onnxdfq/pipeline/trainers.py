"""Workers that stay when the images are made, and train together: what they have to have in common."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import InputError
from onnxdfq.methods.method import FloatModel, Note, Run
from onnxdfq.model_file import batch_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnxdfq.images.images import Images
    from onnxdfq.pipeline.request import Request


def with_trainers(run: Run, request: Request, model: FloatModel, *, unless: str | None) -> Run:
    """The run whose workers train together, where batches are cut for them; tells which of them have nothing to do.

    Args:
        run: Of all workers.
        request: Says into how many slices.
        model: What trains takes as many samples at once.
        unless: Why nothing that trains here can be cut, and what to do instead; None where it can.

    Raises:
        InputError: Batches are to be cut, and cannot be.
    """
    slices, size = request.train_slices, run.workers.size
    if slices == 1:
        return run
    if unless is not None:
        raise InputError(f"--train-slices {slices} cuts batches that train, and {unless}.", field="train_slices")
    if (batch := batch_of(model.graph)) is not None:
        raise InputError(
            f"--train-slices {slices} cuts batches that train, and the model runs at batches of {batch} alone; leave "
            "it out, or export the model with a dynamic batch.",
            field="train_slices",
        )
    if size > slices:
        text = (
            f"{slices} of {size} workers find work in a batch that trains; with --train-slices {size} all do, and "
            "rounding comes out otherwise."
        )
        run.tell(Note(text=text))
    return replace(run, trainers=run.workers)


def agree_on_images(run: Run, images: Images) -> None:
    """Raises WorkerError: a worker, which is named, has others than the first."""
    run.trainers.agree({"images of SHA-256": digest_of({"": images.pixels, **images.others})[:16]})


def agree_to_train(run: Run, how: object, *starts: str) -> None:
    """Raises WorkerError: a worker, which is named, would train something else than the first.

    how: The settings. starts: Digests of what it starts from.
    """
    digest = hashlib.sha256("\n".join((repr(how), *starts)).encode()).hexdigest()
    run.trainers.agree({"a training of SHA-256": digest[:16]})


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex SHA-256 of arrays and their names, in this order."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
