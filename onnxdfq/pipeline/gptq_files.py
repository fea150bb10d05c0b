"""What GPTQ keeps in a scratch folder of a network beyond 2 GB: sums of x xᵀ, and rounded weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from onnxdfq.errors import OutputError
from passes.quantize.blocks import BlockLayer, BlockWeight

NUMBERS_AT_A_TIME = 2**22  # of a sum, that memory holds while something is added


class Sum:
    """A sum of x xᵀ in a file, of which memory holds a few rows while something is added.

    Args:
        path: Of the file.
        depth: How many numbers an x has.
    """

    def __init__(self, path: Path, depth: int) -> None:
        self._path, self._depth = path, depth
        with path.open("wb") as file:
            file.truncate(8 * depth * depth)

    def add(self, value: Float[NDArray[np.float32], "... k"]) -> None:
        """Adds each x of (..., K)."""
        rows = value.reshape(-1, self._depth).astype(np.float64)
        several = max(NUMBERS_AT_A_TIME // self._depth, 1)
        with self._path.open("r+b") as file:
            for first in range(0, self._depth, several):
                part, place = rows[:, first : first + several].T @ rows, 8 * first * self._depth
                file.seek(place)
                part += np.frombuffer(file.read(part.nbytes), np.float64).reshape(part.shape)
                file.seek(place)
                file.write(part.data)

    def taken(self) -> Float64[NDArray[np.float64], "k k"]:
        """The sum, (K, K); the file goes."""
        found = np.fromfile(self._path, np.float64).reshape(self._depth, self._depth)
        self._path.unlink()
        return found


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Raises OutputError: what the block writes there finds none."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The temporary folder {folder.parent} does not take what GPTQ keeps there of a model beyond 2 GB "
            f"({error.strerror or error}); set TMPDIR to a folder with room.",
            exit_code=1,
        ) from error


def keep(file: Path, found: BlockWeight) -> None:
    """Writes a rounded weight."""
    with file.open("wb") as stream:
        stream.write(found.integers.data)
        stream.write(found.scales.data)


def kept(file: Path, layer: BlockLayer) -> BlockWeight:
    """The weight of this layer, from its file."""
    count = layer.depth * layer.width
    return BlockWeight(
        integers=np.fromfile(file, np.int8, count).reshape(layer.depth, layer.width),
        scales=np.fromfile(file, np.float32, offset=count).reshape(-1, layer.width),
    )
