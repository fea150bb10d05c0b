"""Image files: which are there, and how they are decoded, for any of them may be broken or made to do harm."""

import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.paths import check_ordinary, look_at, open_ordinary

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a folder of photographs holds. Pillow goes by what is in a file, and would start Ghostscript for an EPS."""
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MOST_BYTES = 2**26
"""Of one image file."""
MOST_PIXELS = 80_000_000
"""Of one image, decoded."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """Image files; indexing by a slice decodes them to (n, H, W, C) bytes."""

    files: tuple[Path, ...]
    height: int
    width: int
    channels: int
    channels_first: bool = False  # of what is handed out, for a model that takes bytes so

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.files), self.height, self.width, self.channels

    def __getitem__(self, rows: slice) -> UInt8[NDArray[np.uint8], "n _ _ _"]:
        stack = np.empty((len(self.files[rows]), self.height, self.width, self.channels), np.uint8)
        for target, file in zip(stack, self.files[rows], strict=True):
            target[...] = decoded(file, target.shape)
        return stack.transpose(0, 3, 1, 2) if self.channels_first else stack


def image_files(path: Path) -> tuple[tuple[Path, ...], tuple[int, ...], tuple[str, ...]]:
    """The image at a path, or those of a folder; each one's label, by the names of folders in it, and these names.

    There are no names where the images lie in the folder itself. Nothing is decoded yet.

    Raises:
        DataError: There is no image, Pillow is missing, or something is called as an image is and is no ordinary file.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path} is a folder of images, and reading them needs Pillow: pip install pillow.") from error
    names: list[str] = []
    if not path.is_dir():
        files = [(path, 0)]
    else:
        inside = _entries(path)
        names = [entry.name for entry in inside if _is_folder(entry) and not entry.name.startswith(".")]
        flat = [(entry, 0) for entry in inside if _called_image(entry)]
        labelled = [(file, n) for n, name in enumerate(names) for file in _entries(path / name) if _called_image(file)]
        files, names = (flat, []) if flat else (labelled, names)
    if not files:
        raise DataError(f"{path} holds no images; photographs, or a folder per class with images in it, are needed.")
    for file, _ in files:
        check_ordinary(file, most=MOST_BYTES, kind=DataError)
    return tuple(file for file, _ in files), tuple(label for _, label in files), tuple(names)


def decoded(file: Path, shape: Sequence[int]) -> UInt8[NDArray[np.uint8], "_ _ _"]:
    """An image as bytes of a shape (H, W, C): its shorter side scaled, then the centre, and nothing where sizes fit.

    Raises:
        DataError: The file cannot be read as an image, or has too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = shape
    cannot = f"{file} cannot be read as an image"
    try:
        with warnings.catch_warnings(), open_ordinary(file, most=MOST_BYTES, kind=DataError) as stream:
            warnings.simplefilter("ignore")  # the bounds of a file are ours
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"{cannot}: it has {image.width}×{image.height} pixels; {MOST_PIXELS:,} are allowed."
                    )
                fitted = ImageOps.fit(
                    image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BILINEAR
                )
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{cannot}: it is none of {', '.join(FORMATS)}, or is damaged.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{cannot}: it has more than {MOST_PIXELS:,} pixels.") from error
    except Exception as error:  # decoders raise whatever they come upon in broken bytes
        raise DataError(f"{cannot}, it is damaged: {str(error).rstrip('.') or type(error).__name__}.") from error
    return np.asarray(fitted).reshape(height, width, channels)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error


def _is_folder(entry: Path) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # what cannot be looked at is passed over like any other file
        return False


def _called_image(file: Path) -> bool:
    """Whether it is called as an image is; a folder may be, too."""
    if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
        return False
    return not stat.S_ISDIR(look_at(file, kind=DataError).st_mode)
