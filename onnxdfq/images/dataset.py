"""Real images for evaluation or calibration: an .npz file, or a folder of class folders."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.collecting import collect
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import InputSpec

_CHECKED_AT_ONCE = 1024  # images

# Bytes laid out (N, C, H, W) by mistake would else pass for images of a model that takes its channels last.
_CHANNELS_OF_BYTES = (1, 3, 4)

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of a folder of class folders; indexing by a slice decodes them to (n, H, W, C) bytes."""

    files: tuple[Path, ...]
    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), self.height, self.width, self.channels

    def __getitem__(self, rows: slice) -> UInt8[NDArray[np.uint8], "n {self.height} {self.width} {self.channels}"]:
        from PIL import Image, ImageOps

        stack = np.empty((len(self.files[rows]), self.height, self.width, self.channels), np.uint8)
        for target, file in zip(stack, self.files[rows], strict=True):
            try:
                with Image.open(file) as image:
                    # The shorter side to size, then the centre: the usual way, and nothing at all where sizes fit.
                    fitted = ImageOps.fit(
                        image.convert("L" if self.channels == 1 else "RGB"),
                        (self.width, self.height),
                        Image.Resampling.BILINEAR,
                    )
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{file} cannot be read as an image: {error}") from error
            target[...] = np.asarray(fitted).reshape(target.shape)
        return stack


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images and labels that fit a model. Bytes stay bytes until a batch is asked for."""

    images: NDArray[np.uint8] | NDArray[np.float32] | ImageFolder  # (N, H, W, C) bytes or (N, ...) as the model takes
    labels: NDArray[np.integer[Any]] | None = None  # (N,)
    normalization: Normalization | None = None
    channels_last: bool = False  # the model's own layout
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def batches(self, size: int) -> Iterator[Float32[NDArray[np.float32], "n ..."]]:
        """The images in order as the model takes them, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            images = self.images[start : start + size]
            if self.normalization is None:
                yield images.astype(np.float32, copy=False)
                continue
            batch = self.normalization(images.astype(np.uint8, copy=False))
            yield np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if self.channels_last else batch


def load_data(
    source: Any,
    *,
    spec: InputSpec,
    normalization: Normalization | None = None,
    classes: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Images, and labels where there are some, from whatever holds them.

    Args:
        source: a path (see `load_dataset`); an array or tensor, uint8 (N, H, W, C) or float32 (N, C, H, W); a dataset
            of images or (image, label) pairs; or an iterable of batches of images, or of (images, labels).
        limit: images after which an iterable is read no further.

    Raises:
        DataError: it holds something else, or what does not fit the model's input `spec`.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | Path):
        return load_dataset(source, spec=spec, normalization=normalization, classes=classes)
    images, labels = collect(source, limit=limit)
    return _checked(_from_arrays("the data", images, labels, spec), "the data", normalization, classes)


def load_dataset(
    path: Path | str, *, spec: InputSpec, normalization: Normalization | None = None, classes: int | None = None
) -> Dataset:
    """Images that fit the model input `spec`, with labels below `classes` where both are known.

    `.npz`: `images` uint8 (N, H, W, C) or, with one channel, (N, H, W), normalised on load; or float32, taken as is.
    `labels` (N,) is optional. A folder: one folder per class, whose sorted names give the labels; images are scaled
    to the model's size (shorter side, then centre).
    Raises DataError.
    """
    path = Path(path)
    dataset = _from_folder(path, spec) if path.is_dir() else _from_arrays(str(path), *_read_npz(path), spec)
    return _checked(dataset, str(path), normalization, classes)


def _checked(dataset: Dataset, where: str, normalization: Normalization | None, classes: int | None) -> Dataset:
    if len(dataset) == 0:
        raise DataError(f"{where} holds no images.")
    if dataset.labels is not None:
        _check_labels(where, dataset.labels, len(dataset), classes)
    if isinstance(dataset.images, np.ndarray) and dataset.images.dtype == np.float32:
        return dataset
    if normalization is None:
        raise DataError(
            f"{where} holds images as bytes, and nothing says how the model wants them; "
            "give --normalize imagenet, cifar10, none or M1,M2,M3/S1,S2,S3."
        )
    normalization(
        dataset.images[:0].astype(np.uint8, copy=False)
    )  # channels that do not fit show now, not at the first batch
    return replace(dataset, normalization=normalization)


def _from_arrays(
    path: str, images: NDArray[np.generic], labels: NDArray[np.integer[Any]] | None, spec: InputSpec
) -> Dataset:
    wanted = spec.shape[1:]
    if images.dtype == np.float32:
        if images.shape[1:] != wanted:
            raise DataError(
                f"{path}: images float32 {_text(images.shape)} do not fit input {spec.name!r} {_text(spec.shape)}."
            )
        for start in range(0, len(images), _CHECKED_AT_ONCE):
            if not np.isfinite(images[start : start + _CHECKED_AT_ONCE]).all():
                raise DataError(f"{path}: the images hold NaN or infinity.")
        return Dataset(images=images.astype(np.float32, copy=False), labels=labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(
            f"{path}: images are {images.dtype} {_text(images.shape)}; "
            "uint8 (N, H, W, C) or float32 (N, C, H, W) is read."
        )
    if images.ndim == 3:  # grey
        images = images[..., np.newaxis]
    height, width, channels = images.shape[1:]
    channels_last = channels in _CHANNELS_OF_BYTES and wanted == (height, width, channels)
    if not channels_last and wanted != (channels, height, width):
        raise DataError(
            f"{path}: images uint8 {_text(images.shape)} (N, H, W, C) do not fit "
            f"input {spec.name!r} {_text(spec.shape)}."
        )
    return Dataset(images=images.astype(np.uint8, copy=False), labels=labels, channels_last=channels_last)


def _read_npz(path: Path) -> tuple[NDArray[np.generic], NDArray[np.integer[Any]] | None]:
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(
                    f"{path} holds one array; an .npz with 'images' is needed: numpy.savez(path, images=...)."
                )
            if "images" not in archive.files:
                found = ", ".join(map(repr, archive.files)) or "nothing"
                raise DataError(f"{path} has no array 'images' (it holds {found}).")
            return archive["images"], archive["labels"] if "labels" in archive.files else None
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise DataError(f"{path} cannot be read as .npz: {error}") from error
        raise DataError(
            f"{path} would need pickle, which can run code and is refused; save plain arrays: "
            "images uint8 (N, H, W, C) or float32, labels integers."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error


def _from_folder(path: Path, spec: InputSpec) -> Dataset:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path} is a folder of images, and reading them needs Pillow: pip install pillow.") from error
    names = tuple(sorted(folder.name for folder in path.iterdir() if folder.is_dir() and folder.name[0] != "."))
    labelled = [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((path / name).iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not labelled:
        raise DataError(f"{path} holds no images; a folder per class with images in it is needed.")
    sizes = [size for size in spec.shape[1:] if size is not None]
    if len(spec.shape) != 4 or len(sizes) != 3 or not {sizes[0], sizes[2]} & {1, 3}:
        raise DataError(f"{path}: images in folders are grey or RGB; input {spec.name!r} takes {_text(spec.shape)}.")
    channels, height, width = sizes if sizes[0] in (1, 3) else (sizes[2], sizes[0], sizes[1])
    return Dataset(
        images=ImageFolder(files=tuple(file for file, _ in labelled), height=height, width=width, channels=channels),
        labels=np.array([label for _, label in labelled], np.int64),
        channels_last=sizes[0] not in (1, 3),
        class_names=names,
    )


def _check_labels(path: str, labels: NDArray[np.integer[Any]], count: int, classes: int | None) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels are {labels.dtype}; whole numbers are needed.")
    if labels.shape != (count,):
        raise DataError(
            f"{path}: labels have shape {_text(labels.shape)} and there are {count} images; one each is needed."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "from 0 on" if classes is None else f"0 to {classes - 1}, as the model has {classes} classes"
        raise DataError(f"{path}: labels run from {low} to {high}, and do not fit the classes: {allowed}.")


def _text(shape: Sequence[int | None]) -> str:
    return "×".join("N" if size is None else str(size) for size in shape)
