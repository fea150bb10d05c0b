"""Arithmetic, comparison, logic and types, element by element, with broadcasting."""

from collections.abc import Sequence
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine.dtypes import torch_dtype
from onnxdfq.engine.host import Scalar

# --- arithmetic ------------------------------------------------------------


def Add(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(a, b)


def Sub(a: Tensor, b: Tensor) -> Tensor:
    return torch.sub(a, b)


def Mul(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(a, b)


def Div(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    if torch.iinfo(b.dtype).min == 0:
        return torch.div(a, b, rounding_mode="trunc")
    # The least integer by -1 overflows, on which processors trap: the process would die.
    minus = b == -1
    return torch.where(minus, -a, torch.div(a, torch.where(minus, torch.ones_like(b), b), rounding_mode="trunc"))


def Mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def Pow(x: Tensor, exponent: Scalar) -> Tensor:
    """The result is of the type of the base, whatever the type of the exponent."""
    # Integers in double: the exponent may be a fraction, and torch refuses negative ones.
    base = x if x.is_floating_point() else x.double()
    return torch.pow(base, exponent).to(x.dtype)


def Neg(x: Tensor) -> Tensor:
    return torch.neg(x)


def Abs(x: Tensor) -> Tensor:
    return torch.abs(x)


def Sign(x: Tensor) -> Tensor:
    return torch.sign(x)


def Ceil(x: Tensor) -> Tensor:
    return torch.ceil(x)


def Floor(x: Tensor) -> Tensor:
    return torch.floor(x)


def Round(x: Tensor) -> Tensor:
    """Half to even, in ONNX and in torch."""
    return torch.round(x)


def Reciprocal(x: Tensor) -> Tensor:
    return torch.reciprocal(x)


def Sqrt(x: Tensor) -> Tensor:
    return torch.sqrt(x)


def Exp(x: Tensor) -> Tensor:
    return torch.exp(x)


def Log(x: Tensor) -> Tensor:
    return torch.log(x)


def Erf(x: Tensor) -> Tensor:
    return torch.erf(x)


def Sin(x: Tensor) -> Tensor:
    return torch.sin(x)


def Cos(x: Tensor) -> Tensor:
    return torch.cos(x)


def Tan(x: Tensor) -> Tensor:
    return torch.tan(x)


def Asin(x: Tensor) -> Tensor:
    return torch.asin(x)


def Acos(x: Tensor) -> Tensor:
    return torch.acos(x)


def Atan(x: Tensor) -> Tensor:
    return torch.atan(x)


def Sinh(x: Tensor) -> Tensor:
    return torch.sinh(x)


def Cosh(x: Tensor) -> Tensor:
    return torch.cosh(x)


def Asinh(x: Tensor) -> Tensor:
    return torch.asinh(x)


def Acosh(x: Tensor) -> Tensor:
    return torch.acosh(x)


def Atanh(x: Tensor) -> Tensor:
    return torch.atanh(x)


# --- several inputs ------------------------------------------------------------


def Sum(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


def Mean(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def Max(*inputs: Tensor) -> Tensor:
    return reduce(torch.maximum, inputs)


def Min(*inputs: Tensor) -> Tensor:
    return reduce(torch.minimum, inputs)


# --- bounds ------------------------------------------------------------


def Clip(x: Tensor, min: Scalar | None = None, max: Scalar | None = None) -> Tensor:
    """Where min exceeds max every element is max."""
    if min is None and max is None:
        return x
    if isinstance(min, Tensor) or isinstance(max, Tensor):  # torch.clamp takes two numbers or two tensors
        low = None if min is None else torch.as_tensor(min, dtype=x.dtype, device=x.device)
        high = None if max is None else torch.as_tensor(max, dtype=x.dtype, device=x.device)
        return torch.clamp(x, low, high)
    return torch.clamp(x, min, max)


# --- comparison and logic ------------------------------------------------------------


def Equal(a: Tensor, b: Tensor) -> Tensor:
    return torch.eq(a, b)


def Less(a: Tensor, b: Tensor) -> Tensor:
    return torch.lt(a, b)


def LessOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return torch.le(a, b)


def Greater(a: Tensor, b: Tensor) -> Tensor:
    return torch.gt(a, b)


def GreaterOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return torch.ge(a, b)


def And(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_and(a, b)


def Or(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_or(a, b)


def Xor(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_xor(a, b)


def Not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


def Where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def IsNaN(x: Tensor) -> Tensor:
    return torch.isnan(x)


def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if detect_negative:
        found = found | torch.isneginf(x)
    if detect_positive:
        found = found | torch.isposinf(x)
    return found


def BitwiseAnd(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_and(a, b)


def BitwiseOr(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_or(a, b)


def BitwiseXor(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_xor(a, b)


def BitwiseNot(x: Tensor, *, input_types: Sequence[int] = ()) -> Tensor:
    """`input_types`: the ONNX element type, where the torch tensor may be of a wider one."""
    return _without_foreign_bits(torch.bitwise_not(x), ir.DataType(input_types[0] if input_types else 0))


def BitShift(x: Tensor, amount: Tensor, *, direction: str) -> Tensor:
    return torch.bitwise_left_shift(x, amount) if direction == "LEFT" else torch.bitwise_right_shift(x, amount)


# --- types ------------------------------------------------------------


def Identity(x: Tensor) -> Tensor:
    return x


def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """`saturate` and `round_mode` speak of float8 only, which the engine does not carry."""
    return _without_foreign_bits(x.to(torch_dtype(to)), ir.DataType(to))


def CastLike(
    x: Tensor, target: Tensor, *, saturate: int = 1, round_mode: str = "up", input_types: Sequence[int] = ()
) -> Tensor:
    return _without_foreign_bits(x.to(target.dtype), ir.DataType(input_types[1] if input_types else 0))


_BITS = {
    ir.DataType.INT2: 2, ir.DataType.INT4: 4,
    ir.DataType.UINT2: 2, ir.DataType.UINT4: 4, ir.DataType.UINT16: 16, ir.DataType.UINT32: 32,
}  # fmt: skip


def _without_foreign_bits(x: Tensor, dtype: ir.DataType) -> Tensor:
    """Drops the bits that an integer type does not have and the wider torch type that carries it does."""
    bits = _BITS.get(dtype)
    if bits is None:
        return x
    kept = x & (2**bits - 1)
    return torch.where(kept >= 2 ** (bits - 1), kept - 2**bits, kept) if dtype.is_signed() else kept


def Dropout(
    x: Tensor,
    ratio: Tensor | None = None,
    training_mode: Tensor | None = None,
    *,
    seed: int = 0,
    output_count: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """The identity, whatever the ratio: `training_mode` is ignored, since a network that was exported is run."""
    return (x, torch.ones_like(x, dtype=torch.bool)) if output_count == 2 else x


def Det(x: Tensor) -> Tensor:
    result: Tensor = torch.linalg.det(x)
    return result
