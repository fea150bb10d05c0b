"""ONNX element types and the torch types that carry them.

Integer types that torch lacks, or barely has, travel in a wider type: every value fits, only wrap-around differs.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.errors import UnsupportedOperator

TORCH_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.BOOL: torch.bool,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.UINT64: torch.int64,
}


def torch_dtype(dtype: ir.DataType | int) -> torch.dtype:
    """The torch type that carries an ONNX element type.

    Raises:
        UnsupportedOperator: Strings, float8, float4 and complex numbers have none.
    """
    onnx_dtype = ir.DataType(dtype)
    if onnx_dtype not in TORCH_DTYPES:
        raise UnsupportedOperator(
            f"element type {onnx_dtype.name} is not supported; floats of 16 to 64 bits, bool and integers are"
        )
    return TORCH_DTYPES[onnx_dtype]


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """A copy of an ONNX tensor on the CPU, same shape, in the type that carries it.

    Raises:
        UnsupportedOperator: No torch type carries its element type.
    """
    return _carried(tensor.numpy(), torch_dtype(tensor.dtype))


def from_numpy(array: np.ndarray) -> Tensor:
    """A copy of an array on the CPU, same shape, in the type that carries it.

    Raises:
        UnsupportedOperator: No torch type carries its element type.
    """
    return _carried(array, torch_dtype(ir.DataType.from_numpy(array.dtype)))


def _carried(array: np.ndarray, carrier: torch.dtype) -> Tensor:
    if carrier is torch.bfloat16:  # numpy has no bfloat16 of its own: hand the bits over
        return torch.from_numpy(np.array(array).view(np.int16)).view(torch.bfloat16)
    wanted = np.dtype(str(carrier).removeprefix("torch."))
    return torch.from_numpy(np.array(array, dtype=wanted, order="C"))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor as a numpy array of the same shape, type and bits, bfloat16 included."""
    values = tensor.detach().cpu().contiguous()
    if values.dtype is torch.bfloat16:
        return values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return values.numpy()
