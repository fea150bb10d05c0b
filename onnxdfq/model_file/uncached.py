"""Weights that stay on the disk: read where they are asked for, and held by nobody but who asked."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class UncachedTensor(ir.ExternalTensor):
    """An external tensor whose file is mapped as long as somebody holds its array.

    onnx-ir's own keeps every array that was asked for once, so that a walk over the weights ends with all of them in
    memory.
    """

    @classmethod
    def of(cls, tensor: ir.ExternalTensor, base_dir: Any) -> "UncachedTensor":
        """The same tensor, its file in the folder `base_dir`."""
        return cls(**_arguments(tensor) | {"base_dir": base_dir})

    def numpy(self) -> NDArray[Any]:
        """The array, a view of the mapped file where its type is one of numpy's own."""
        return ir.ExternalTensor(**_arguments(self)).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.numpy(), dtype, copy=copy)

    def tobytes(self) -> bytes:
        """The bytes as they lie in the file."""
        return ir.ExternalTensor(**_arguments(self)).tobytes()


def _arguments(tensor: ir.ExternalTensor) -> dict[str, Any]:
    return {
        "location": tensor.location,
        "offset": tensor.offset,
        "length": tensor.length,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "name": tensor.name,
        "base_dir": tensor.base_dir,
    }
