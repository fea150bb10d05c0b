"""Arrays from .npz and .npy files."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import DataError

IMAGES = "images"
"""The array of the main input."""


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """By name, the arrays of an .npz file; that of an .npy file as `images`.

    Raises:
        DataError: The file is neither, or would need pickle.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                return {IMAGES: archive}
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise DataError(f"{path} cannot be read as .npz: {error}") from error
        raise DataError(
            f"{path} would need pickle, which can run code and is refused; save plain arrays: "
            "images uint8 (N, H, W, C) or float32, labels integers."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}") from error
