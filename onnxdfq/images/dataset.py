"""Real images for evaluation or calibration: an .npz file, or a folder of class folders."""

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.archive import IMAGES, ArrayFile
from onnxdfq.images.collecting import collect
from onnxdfq.images.folder import SUFFIXES, ImageFolder, image_files
from onnxdfq.images.images import PREFIX
from onnxdfq.images.normalization import Normalization
from onnxdfq.images.samples import Samples, as_samples, fits
from onnxdfq.model_file import InputSpec
from onnxdfq.model_file.filling import MOST
from onnxdfq.model_file.inputs import CHANNELS
from onnxdfq.paths import look_at

_READ = "uint8 (N, H, W, C) or float32 (N, C, H, W) is read"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Images, or what else a model takes, and labels that fit it. Bytes stay bytes until a batch is asked for.

    Attributes:
        images: (N, H, W, C) bytes, or (N, ...) as the model's main input takes it.
        labels: (N,).
        normalization: Of bytes; None for what is fed as it is.
        channels_last: Whether the model takes bytes in their own layout.
        class_names: Of the labels.
        others: By name, (N, ...) of other inputs.
        as_it_is: Whether nothing has to be normalised.
    """

    images: NDArray[Any] | ImageFolder
    labels: NDArray[np.integer[Any]] | None = None
    normalization: Normalization | None = None
    channels_last: bool = False
    class_names: tuple[str, ...] = ()
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    as_it_is: bool = False

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def batches(self, size: int) -> Iterator[Shaped[NDArray[Any], "n ..."]]:
        """What the main input takes, in order, `size` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            images = self.images[start : start + size]
            if self.normalization is None:
                yield images
                continue
            batch = self.normalization(images.astype(np.uint8, copy=False))
            yield np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if self.channels_last else batch

    def samples(self, size: int) -> Iterator[Samples]:
        """The same with what the other inputs take."""
        for number, batch in enumerate(self.batches(size)):
            rows = slice(number * size, number * size + len(batch))
            yield Samples(main=batch, others={name: array[rows] for name, array in self.others.items()})


def load_data(
    source: Any,
    *,
    spec: InputSpec,
    others: Sequence[InputSpec] = (),
    normalization: Normalization | None = None,
    classes: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Images, and labels where there are some, from whatever holds them.

    Args:
        source: A path (see `load_dataset`); an array or tensor, uint8 (N, H, W, C) or as the model takes it; a mapping
            of arrays by input name; a dataset of images or (image, label) pairs; or an iterable of batches of images,
            or of (images, labels).
        spec: The model's main input.
        others: Its other inputs.
        normalization: Of bytes.
        classes: How many the model has.
        limit: Images after which an iterable is read no further.

    Raises:
        DataError: It holds something else, or what does not fit the inputs.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, str | Path):
        return load_dataset(source, spec=spec, others=others, normalization=normalization, classes=classes)
    if isinstance(source, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in source.items()}
        return _checked(_from_named("the data", arrays, spec, others), "the data", normalization, classes)
    images, labels = collect(source, limit=limit)
    return _checked(_from_arrays("the data", images, labels, spec), "the data", normalization, classes)


def load_dataset(
    path: Path | str,
    *,
    spec: InputSpec,
    others: Sequence[InputSpec] = (),
    normalization: Normalization | None = None,
    classes: int | None = None,
) -> Dataset:
    """Images that fit the model's inputs, with labels below `classes` where both are known.

    `.npz`: an array for each input by its name; or `images` for the main input: uint8 (N, H, W, C) or, with one
    channel, (N, H, W), normalised on load; or as the model takes it. `labels` (N,) is optional. `.npy`: one such array.
    A folder: photographs, or one folder per class, whose sorted names give the labels; or one image file. Images are
    scaled to the model's size (shorter side, then centre).

    Raises:
        DataError: The data cannot be read, or does not fit the model.
    """
    path = Path(path)
    if _holds_images(path):
        return _checked(_from_folder(path, spec), str(path), normalization, classes)
    return _checked(_from_named(str(path), ArrayFile(path), spec, others), str(path), normalization, classes)


def shapes_of_data(source: Any) -> dict[str, tuple[int, ...]]:
    """By input name, "images" for the main one, the shapes of arrays that are at hand as a file or a mapping.

    Raises:
        DataError: A file cannot be read.
    """
    if isinstance(source, Mapping):
        return {str(name): np.shape(array) for name, array in source.items()}
    if isinstance(source, str | Path):
        path = Path(source)
        return {} if _holds_images(path) else {n.removeprefix(PREFIX): s for n, s in ArrayFile(path).shapes.items()}
    return {IMAGES: source.shape} if isinstance(source, np.ndarray) else {}


def _holds_images(path: Path) -> bool:
    """Whether a path is a folder of images or an image. Raises DataError where nothing lies there."""
    found = look_at(path, missing="there is no such file or folder", kind=DataError)
    return stat.S_ISDIR(found.st_mode) or path.suffix.lower() in SUFFIXES


def _checked(dataset: Dataset, where: str, normalization: Normalization | None, classes: int | None) -> Dataset:
    if len(dataset) == 0:
        raise DataError(f"{where} holds no images.")
    if dataset.labels is not None:
        _check_labels(where, dataset.labels, len(dataset), classes)
    if dataset.as_it_is:
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


def _from_named(path: str, arrays: Mapping[str, NDArray[Any]], spec: InputSpec, others: Sequence[InputSpec]) -> Dataset:
    """From arrays by name: `images` or the main input's own name, other inputs', and `labels`."""
    own = next((name for name in (spec.name, PREFIX + spec.name, IMAGES) if name in arrays), None)
    if own is None and len(arrays) == 1 and not others:
        own = next(iter(arrays)) if next(iter(arrays)).startswith("arr_") else None
    if own is None:
        found = ", ".join(map(repr, arrays)) or "nothing"
        names = ", ".join(repr(one.name) for one in (spec, *others))
        wanted = f", and no {spec.name!r}; an array for each input is read: {names}" if others else ""
        raise DataError(f"{path} has no array {IMAGES!r}{wanted} (it holds {found}).")
    labels = arrays.get("labels") if "labels" not in (spec.name, *(one.name for one in others)) else None
    dataset = _from_arrays(path, arrays[own], labels, spec)
    found_others = {}
    for one in others:
        array = arrays.get(one.name, arrays.get(PREFIX + one.name))
        if array is None:
            continue
        samples = as_samples(array, one, path)
        if len(samples) not in (1, len(dataset)):
            raise DataError(
                f"{path} holds {len(dataset)} samples of the input {spec.name!r} and {len(samples)} of {one.name!r}; "
                "as many are needed, or one that serves all."
            )
        shape = (len(dataset), *samples.shape[1:])
        found_others[one.name] = samples if len(samples) == len(dataset) else np.broadcast_to(samples, shape)
    return replace(dataset, others=found_others)


def _from_arrays(
    path: str, images: NDArray[np.generic], labels: NDArray[np.integer[Any]] | None, spec: InputSpec
) -> Dataset:
    wanted = spec.sample_shape
    pixels = images.dtype == np.uint8 and spec.image is not None
    if spec.image is not None and not pixels:
        if not np.issubdtype(images.dtype, np.floating):
            raise DataError(f"{path}: images are {images.dtype} {_text(images.shape)}; {_READ}.")
        if images.ndim == len(spec.shape) and not fits(images.shape[1:], wanted):
            raise DataError(
                f"{path}: images {images.dtype} {_text(images.shape)} do not fit input {spec.name!r} "
                f"{_text(spec.shape)}."
            )
    if not pixels:
        samples = as_samples(images, spec, path)
        if spec.is_float and samples.size:
            _check_range(path, samples, spec)
        return Dataset(images=samples, labels=labels, as_it_is=True)
    if images.ndim == len(spec.shape) - 1:  # grey
        images = images[..., np.newaxis]
    if images.ndim != 4:
        raise DataError(f"{path}: images are {images.dtype} {_text(images.shape)}; {_READ}.")
    height, width, channels = images.shape[1:]
    channels_last = channels in CHANNELS and spec.image == "last" and fits((height, width, channels), wanted)
    if spec.is_bytes and (channels_last or fits(images.shape[1:], wanted)):
        return Dataset(images=images, labels=labels, as_it_is=True)
    if not channels_last and not (spec.image == "first" and fits((channels, height, width), wanted)):
        raise DataError(
            f"{path}: images uint8 {_text(images.shape)} (N, H, W, C) do not fit "
            f"input {spec.name!r} {_text(spec.shape)}."
        )
    if spec.is_bytes:
        return Dataset(images=images.transpose(0, 3, 1, 2), labels=labels, as_it_is=True)
    return Dataset(images=images.astype(np.uint8, copy=False), labels=labels, channels_last=channels_last)


def _check_range(path: str, samples: NDArray[Any], spec: InputSpec) -> None:
    """Refuses numbers of which a layer would make infinity. Those of other inputs may be masks, and mean it."""
    low, high = float(samples.min()), float(samples.max())
    if low < -MOST or high > MOST:
        numbers = f"holds numbers from {low:g} to {high:g}; they are at least {-MOST:g} and at most {MOST:g}"
        raise DataError(f"{path}: the array {spec.name!r} {numbers}.")


def _from_folder(path: Path, spec: InputSpec) -> Dataset:
    files, labels, names = image_files(path)
    sizes = [size for size in spec.sample_shape if size is not None]
    if spec.image is None or len(sizes) != 3 or spec.planes[0] not in (1, 3):
        raise DataError(f"{path}: images in folders are grey or RGB; input {spec.name!r} takes {_text(spec.shape)}.")
    channels, height, width = spec.planes
    return Dataset(
        images=ImageFolder(
            files=files,
            height=height,
            width=width,
            channels=channels,
            channels_first=spec.is_bytes and spec.image == "first",
        ),
        labels=np.array(labels, np.int64) if names else None,
        channels_last=spec.image == "last",
        class_names=names,
        as_it_is=spec.is_bytes,
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
