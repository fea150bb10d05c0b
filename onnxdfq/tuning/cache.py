"""Memory for values over all images: bfloat16 tensors, those that are large in a file."""

import math
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from jaxtyping import BFloat16
from torch import Tensor

LARGEST_IN_MEMORY = 2**29  # bytes; about five such values live at a time


class Cache:
    """Makes tensors for a `with` block; the large ones lie in a temporary folder that goes when it ends.

    Args:
        limit: Bytes above which a tensor lies in a file.
    """

    def __init__(self, limit: int = LARGEST_IN_MEMORY) -> None:
        self.limit = limit
        self._folder = tempfile.TemporaryDirectory(prefix="onnxdfq-")
        self._files = 0

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def empty(self, shape: tuple[int, ...]) -> BFloat16[Tensor, "..."]:
        """Of this shape, on the CPU, uninitialised."""
        count = math.prod(shape)
        if 2 * count <= self.limit:
            return torch.empty(shape, dtype=torch.bfloat16)
        self._files += 1
        path = Path(self._folder.name) / str(self._files)
        values = torch.from_file(str(path), shared=True, size=count, dtype=torch.bfloat16).view(shape)
        with suppress(OSError):  # where a mapped file may go, its space is free again as soon as the tensor is
            path.unlink()
        return values
