"""Images out of what Python programs hold them in: arrays, tensors, datasets, loaders."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from numpy.typing import NDArray

from onnxdfq.errors import DataError

Labels = NDArray[np.integer[Any]]
ACCEPTED = (
    "an array uint8 (N, H, W, C) or float32 (N, C, H, W), a dataset of images or (image, label) pairs, or an iterable "
    "of batches"
)


def collect(
    source: Any, *, limit: int | None = None
) -> tuple[Shaped[NDArray[np.generic], "..."], Int[Labels, "n"] | None]:
    """Images (N, ...) and labels (N,), if any, from an array, a dataset of single images, or an iterable of batches.

    Args:
        limit: images after which an iterable is read no further.

    Raises:
        DataError: it is something else, is empty, or its parts do not fit one another.
    """
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return np.asarray(source), None
    if isinstance(source, str | bytes) or (not isinstance(source, Iterable) and not hasattr(source, "__getitem__")):
        raise DataError(f"The data is of type {type(source).__name__}; give {ACCEPTED}.")
    images: list[NDArray[np.generic]] = []
    labels: list[NDArray[np.generic]] = []
    count = 0
    for item in _items(source):
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        image = np.asarray(image)
        if image.ndim not in (2, 3, 4):
            raise DataError(f"The data holds an entry of shape {image.shape}; give {ACCEPTED}.")
        batch = image if image.ndim == 4 else image[np.newaxis]
        images.append(batch)
        if label is not None:
            labels.append(np.asarray(label).reshape(-1))
        count += len(batch)
        if limit is not None and count >= limit:
            break
    if not images:
        raise DataError(f"The data is empty; give {ACCEPTED}.")
    if len({(part.shape[1:], part.dtype) for part in images}) > 1:
        raise DataError("The data holds images of different sizes or types; bring them to one first.")
    if labels and sum(map(len, labels)) != count:
        raise DataError(f"The data holds {count} images and {sum(map(len, labels))} labels; one each is needed.")
    return np.concatenate(images), np.concatenate(labels).astype(np.int64) if labels else None


def _items(source: Any) -> Iterable[Any]:
    """A dataset that is indexed but does not iterate (torch's) is read by its length."""
    if hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "__iter__"):
        return (source[index] for index in range(len(source)))
    found: Iterable[Any] = source
    return found
