"""Operators that make, move, cut and join, and compute nothing."""

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine.dtypes import torch_dtype
from onnxdfq.engine.host import Float, Int, Ints, Scalar

# --- make ------------------------------------------------------------


def Constant(
    *,
    value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Tensor:
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return torch.tensor(value_float if value_floats is None else value_floats, dtype=torch.float32)
    return torch.tensor(value_int if value_ints is None else value_ints, dtype=torch.int64)


def ConstantOfShape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    if value is None:
        return torch.zeros(shape)
    return torch.full(shape, value.item(), dtype=value.dtype)


def Range(start: Float, limit: Float, delta: Float, *, input_types: Sequence[int] = (ir.DataType.INT64,)) -> Tensor:
    return torch.arange(start, limit, delta, dtype=torch_dtype(input_types[0] or ir.DataType.INT64))


def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    """Ones on the k-th diagonal of a matrix of the shape of x."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    columns = torch.arange(x.shape[1], device=x.device)
    return (columns - rows == k).to(x.dtype if dtype is None else torch_dtype(dtype))


def Shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=_real_device(x))


def Size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=_real_device(x))


def _real_device(x: Tensor) -> torch.device:
    """The plan asks tensors without data for their shape, and wants to read the answer."""
    return torch.device("cpu") if x.is_meta else x.device


# --- reshape ------------------------------------------------------------


def Reshape(data: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    """A 0 keeps the dimension of the input, unless `allowzero`."""
    if not allowzero:
        shape = tuple([data.shape[axis] if length == 0 else length for axis, length in enumerate(shape)])
    return data.reshape(shape)


def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def Squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(axes)


def Unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def Transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(perm or reversed(range(x.ndim))))


def Expand(x: Tensor, shape: Ints) -> Tensor:
    """Broadcasting both ways: a 1 in `shape` keeps the dimension of x."""
    sizes = [1] * (x.ndim - len(shape)) + list(shape)
    kept = [length if wanted == 1 else wanted for length, wanted in zip(x.shape[::-1], sizes[::-1], strict=False)]
    return x.expand(sizes[: len(sizes) - x.ndim] + kept[::-1])


def Tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(repeats)


def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """(N, C · b², H, W) → (N, C, H · b, W · b). The block is the outer part of C · b² (DCR) or the inner (CRD)."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // b**2, h * b, w * b)


def SpaceToDepth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """The inverse of DepthToSpace."""
    if mode == "CRD":
        return F.pixel_unshuffle(x, blocksize)
    n, c, h, w = x.shape
    b = blocksize
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b**2, h // b, w // b)


# --- join and cut ------------------------------------------------------------


def Concat(*inputs: Tensor, axis: int) -> Tensor:
    return torch.cat(inputs, dim=axis)


def Split(
    x: Tensor, split: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None, output_count: int = 1
) -> tuple[Tensor, ...]:
    """Equal parts, the last one smaller, where no sizes are given."""
    if split is None:
        part = -(-x.shape[axis] // (num_outputs or output_count))
        return torch.split(x, part, dim=axis)
    return torch.split(x, list(split), dim=axis)


def Slice(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    axes = axes or tuple(range(len(starts)))
    steps = steps or (1,) * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = x.shape[axis]
        chosen = range(length)[start:end:step]  # Python clamps out-of-range bounds as ONNX does
        if len(chosen) == length and step == 1:
            continue
        if step > 0:
            index = [slice(None)] * (axis % x.ndim) + [slice(chosen.start, chosen.stop, step)]
            x = x[tuple(index)]
        else:  # torch has no negative steps: take every |step|-th of the same elements, then turn them round
            index = [slice(None)] * (axis % x.ndim)
            index += [slice(chosen[-1], chosen[0] + 1, -step) if len(chosen) else slice(0, 0)]
            x = x[tuple(index)].flip(axis)
    return x


def Pad(
    x: Tensor,
    pads: Ints,
    constant_value: Scalar | None = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """`pads` is in ONNX order, all begins and then all ends; negative ones crop."""
    axes = tuple(range(x.ndim)) if axes is None else tuple([axis % x.ndim for axis in axes])
    pairs = [(0, 0)] * x.ndim
    for position, axis in enumerate(axes):
        pairs[axis] = (pads[position], pads[position + len(axes)])
    if mode == "constant":
        filler = value if constant_value is None else constant_value
        amounts = [amount for pair in reversed(pairs) for amount in pair]
        if isinstance(filler, Tensor):  # it trains, or depends on data: keep its gradient
            inside = F.pad(torch.ones_like(x, dtype=torch.bool), amounts)
            return torch.where(inside, F.pad(x, amounts), filler.to(x.dtype))
        return F.pad(x, amounts, value=filler)
    for axis, (begin, end) in enumerate(pairs):  # torch's own modes pad the last axes only, and only some ranks
        if begin or end:
            x = x.index_select(axis, _source_positions(x.shape[axis], begin, end, mode, x.device))
    return x


def _source_positions(length: int, begin: int, end: int, mode: str, device: torch.device) -> Tensor:
    positions = torch.arange(-begin, length + end, device=device)
    if mode == "edge":
        return positions.clamp(0, length - 1)
    if mode == "wrap":
        return positions % length
    period = max(2 * (length - 1), 1)  # reflect: the edge itself is not repeated
    positions = positions % period
    return torch.where(positions < length, positions, period - positions)


def CenterCropPad(x: Tensor, shape: Ints, *, axes: Sequence[int] | None = None) -> Tensor:
    """The centre of x, cropped or padded with zeros to `shape`; an odd element comes off, or goes on, at the end."""
    pairs = [(0, 0)] * x.ndim
    for axis, wanted in zip(range(x.ndim) if axes is None else axes, shape, strict=True):
        have = x.shape[axis]
        begin = -((have - wanted) // 2) if have > wanted else (wanted - have) // 2
        pairs[axis] = (begin, wanted - have - begin)
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair])


def Trilu(x: Tensor, k: Int = 0, *, upper: int = 1) -> Tensor:
    return torch.triu(x, k) if upper else torch.tril(x, k)


def ReverseSequence(x: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """Turns round the first `sequence_lens[b]` elements of the time axis in each batch element."""
    times = torch.arange(x.shape[time_axis], device=x.device).unsqueeze(1)  # (T, 1)
    source = torch.where(times < sequence_lens, sequence_lens - 1 - times, times)  # (T, B)
    source = source if time_axis == 0 else source.T
    return x.gather(time_axis, source.reshape(*source.shape, *[1] * (x.ndim - 2)).expand(x.shape))


def Col2Im(
    x: Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """(N, C · block, L) → (N, C, *image): sums the blocks back into an image of any rank."""
    rank = len(image_shape)
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
    padded = [length + pads[axis] + pads[axis + rank] for axis, length in enumerate(image_shape)]
    # The flat position, in the padded image, of every element of every block: (block, L).
    position = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for axis in range(rank):
        count = (padded[axis] - (block_shape[axis] - 1) * dilations[axis] - 1) // strides[axis] + 1
        offsets = torch.arange(block_shape[axis], device=x.device) * dilations[axis]
        origins = torch.arange(count, device=x.device) * strides[axis]
        along = offsets.reshape(1, -1, 1, 1) + origins.reshape(1, 1, 1, -1)
        rows, columns = position.shape
        position = (position.reshape(rows, 1, columns, 1) * padded[axis] + along).reshape(rows * len(offsets), -1)
    n, channels = x.shape[0], x.shape[1] // position.shape[0]
    values = x.reshape(n, channels, -1)
    image = (
        values.new_zeros(n, channels, math.prod(padded))
        .index_add(2, position.flatten(), values)
        .reshape(n, channels, *padded)
    )
    return F.pad(image, [-amount for axis in reversed(range(rank)) for amount in (pads[axis], pads[axis + rank])])
