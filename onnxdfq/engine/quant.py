"""QuantizeLinear and DequantizeLinear, exact forward and straight-through backward.

The forward pass is ONNX's own arithmetic. Rounding passes the gradient unchanged, saturation passes it inside the range
only, so that for y = DequantizeLinear(QuantizeLinear(x, s), s)

    dy/dx = 1 inside the range, 0 outside                               (straight-through, arXiv 1308.3432)
    dy/ds = round(x/s) - x/s inside the range, q - zero point outside   (LSQ, Eq. 3 of arXiv 1902.08153)

Nothing is scaled: an optimiser that wants LSQ's step-size gradient scale applies it itself.
"""

from collections.abc import Collection, Sequence
from itertools import starmap
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine.dtypes import torch_dtype
from onnxdfq.engine.host import Scalar
from onnxdfq.errors import UnsupportedOperator

TRANSPARENT: frozenset[str] = frozenset(
    {"Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Pad",
     "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
"""Operators that only move integers or bound them: float32 carries their results exactly, and gradients pass them."""


def float_carriers(nodes: Sequence[ir.Node], graph_outputs: Collection[str]) -> frozenset[ir.Node]:
    """The QuantizeLinear nodes whose results may be float32 instead of an integer type.

    That is where only DequantizeLinear, behind `TRANSPARENT` operators or not, reads their integers: float32 holds
    integers of up to 24 bits exactly and has gradients. Where the graph ends in integers or an integer operator reads
    them, the result is of the integer type.

    Args:
        nodes: Of the graph, as far as they run, in topological order.
        graph_outputs: Names.
    """
    present = frozenset(nodes)
    found: set[ir.Node] = set()  # whose results nothing but DequantizeLinear reads

    def carries(user: ir.Node, position: int) -> bool:
        if user not in present or (user.op_type == "DequantizeLinear" and position == 0):
            return True
        return user.op_type in TRANSPARENT and user in found

    for node in reversed(nodes):
        if all(value.name not in graph_outputs and all(starmap(carries, value.uses())) for value in node.outputs):
            found.add(node)
    return frozenset(node for node in found if node.op_type == "QuantizeLinear")


class _RoundStraightThrough(torch.autograd.Function):
    """Rounds half to even; its gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def QuantizeLinear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Scalar | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    input_types: Sequence[int] = (),
    carries_float: bool = False,
) -> Tensor:
    """saturate(round(x / y_scale) + y_zero_point), rounded half to even; same shape as x.

    Args:
        x: Of any shape and floating type.
        y_scale: () per tensor, (C,) along `axis`, or x's shape with blocks of `block_size` along `axis`.
        y_zero_point: In the shape of the scale.
        axis: Of the scales.
        block_size: Elements that share a scale along `axis`; 0 without blocks.
        output_dtype: ONNX element type, where no zero point has one.
        precision: ONNX element type of the quotient; 0 is float32 or wider.
        saturate: For float8 alone, which the engine lacks.
        input_types: ONNX element types of the inputs: the torch tensor of a zero point may be of a wider type.
        carries_float: Whether the result is float32 (`float_carriers`) instead of the integer type.
    """
    onnx_dtype = ir.DataType((input_types[2] if len(input_types) > 2 else 0) or output_dtype or ir.DataType.UINT8)
    low, high = _integer_range(onnx_dtype)
    # In float32 at least: bfloat16 does not hold every integer beyond 256.
    work = torch_dtype(precision) if precision else _at_least_float32(torch.promote_types(x.dtype, y_scale.dtype))
    scaled = x.to(work) / _aligned(y_scale, x, axis, block_size).to(work)
    rounded = _RoundStraightThrough.apply(scaled)  # type: ignore[no-untyped-call]
    if (zero := _offset(y_zero_point, x, axis, block_size)) is not None:
        rounded = rounded + zero
    saturated = torch.clamp(rounded, low, high)
    return saturated if carries_float else saturated.to(torch_dtype(onnx_dtype))


def DequantizeLinear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Scalar | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - x_zero_point) * x_scale in the type of the scale, or `output_dtype`; same shape as x.

    Shapes of scale and zero point, `axis` and `block_size` are as for `QuantizeLinear`.
    """
    scale = _aligned(x_scale, x, axis, block_size)
    if not x.is_floating_point():
        x = x.to(torch.int32)  # the difference of two int8 does not fit int8
    if (zero := _offset(x_zero_point, x, axis, block_size)) is not None:
        x = x - zero
    result = x.to(_at_least_float32(scale.dtype)) * scale
    return result.to(torch_dtype(output_dtype) if output_dtype else x_scale.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _integer_range(dtype: ir.DataType) -> tuple[int, int]:
    """Least and greatest integer of an ONNX integer type of 2 to 16 bits."""
    if not dtype.is_integer() or dtype.bitwidth not in (2, 4, 8, 16):
        raise UnsupportedOperator(
            f"quantization to {dtype.name} is not supported; to int2, int4, int8, int16 and unsigned it is"
        )
    half = 2 ** (dtype.bitwidth - 1)
    return (-half, half - 1) if dtype.is_signed() else (0, 2 * half - 1)


def _aligned(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, per tensor, per axis or blocked, in a shape that broadcasts against `x`."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    axis %= x.ndim
    if block_size:
        return parameter.repeat_interleave(block_size, dim=axis).narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if dim == axis else 1 for dim in range(x.ndim)])


def _offset(zero_point: float | Tensor | None, x: Tensor, axis: int, block_size: int) -> float | Tensor | None:
    """The zero point in a shape that broadcasts against x; None where it is 0, which spares a pass over the tensor."""
    return _aligned(zero_point, x, axis, block_size) if isinstance(zero_point, Tensor) else zero_point or None
