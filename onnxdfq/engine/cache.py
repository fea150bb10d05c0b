"""Memory for values over all images, those that are large in a file."""

import math
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from onnxdfq.errors import OutputError
from onnxdfq.scratch import scratch_folder

LARGEST_IN_MEMORY = 2**29  # bytes; about five such values live at a time
_CHUNK = 2**24


class Cache:
    """Makes tensors for a `with` block; the large ones lie in a temporary folder that goes when it ends.

    Args:
        limit: Bytes above which a tensor lies in a file.
        dtype: Of the tensors.
    """

    def __init__(self, limit: int = LARGEST_IN_MEMORY, dtype: torch.dtype = torch.bfloat16) -> None:
        self.limit, self.dtype = limit, dtype
        self._stack = ExitStack()
        self._folder: Path | None = None
        self._files = 0

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def empty(self, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        """Of this shape, on the CPU, uninitialised.

        Raises:
            OutputError: The temporary folder has no room for it.
        """
        count = math.prod(shape)
        size = count * self.dtype.itemsize
        if size <= self.limit:
            return torch.empty(shape, dtype=self.dtype)
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch_folder())
        self._files += 1
        path = self._folder / str(self._files)
        _reserve(path, size)
        values = torch.from_file(str(path), shared=True, size=count, dtype=self.dtype).view(shape)
        with suppress(OSError):  # where a mapped file may go, its space is free again as soon as the tensor is
            path.unlink()
        return values


def _reserve(path: Path, size: int) -> None:
    """A file of so many bytes that are the disk's own: writing to a mapped one that finds none kills the process."""
    try:
        with path.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:
                for start in range(0, size, _CHUNK):
                    stream.write(bytes(min(_CHUNK, size - start)))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OutputError(
            f"The values of a layer need {size:,} bytes in the temporary folder {path.parent.parent}, which does not "
            f"take them ({error.strerror}); set TMPDIR to a folder with room, or take fewer --images.",
            exit_code=1,
        ) from error
