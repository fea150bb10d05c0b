"""Pooling."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine.host import Ints
from onnxdfq.engine.ops.windows import ceil_extras, pad_spatial, resolve_pads, windows

_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _spatial_axes(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


def GlobalAveragePool(x: Tensor) -> Tensor:
    return x.mean(dim=_spatial_axes(x), keepdim=True)


def GlobalMaxPool(x: Tensor) -> Tensor:
    return x.amax(dim=_spatial_axes(x), keepdim=True)


def GlobalLpPool(x: Tensor, *, p: int = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, ord=p, dim=_spatial_axes(x), keepdim=True)
    return norm


def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    pairs = resolve_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if set(dilations) == {1} and _torch_takes(pairs, kernel_shape):
        begins = [begin for begin, _ in pairs]
        return _AVERAGE[rank](x, kernel_shape, strides, begins, bool(ceil_mode), bool(count_include_pad))
    extras = ceil_extras(x.shape[2:], kernel_shape, strides, dilations, pairs) if ceil_mode else [0] * rank
    grown = [(begin, end + extra) for (begin, end), extra in zip(pairs, extras, strict=True)]
    # What counts: the input, the padding if asked for, and never what ceil_mode adds.
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    counted = pad_spatial(counted, pairs, 1.0 if count_include_pad else 0.0)
    counted = pad_spatial(counted, [(0, extra) for extra in extras])
    axes = list(range(-rank, 0))
    total = windows(pad_spatial(x, grown), kernel_shape, strides, dilations).sum(dim=axes)
    return total / windows(counted, kernel_shape, strides, dilations).sum(dim=axes)


def LpPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    pairs = resolve_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if ceil_mode:
        extras = ceil_extras(x.shape[2:], kernel_shape, strides, dilations, pairs)
        pairs = [(begin, end + extra) for (begin, end), extra in zip(pairs, extras, strict=True)]
    view = windows(pad_spatial(x, pairs), kernel_shape, strides, dilations)
    norm: Tensor = torch.linalg.vector_norm(view, ord=p, dim=list(range(-rank, 0)))
    return norm


def MaxPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    output_count: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    """The second output, where asked for, is the flat index of each maximum in x (column-major if `storage_order`)."""
    rank = len(kernel_shape)
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    size = x.shape[2:]
    pairs = resolve_pads(size, kernel_shape, strides, dilations, pads, auto_pad)
    shift = [0] * rank
    padded = x
    if not _torch_takes(pairs, kernel_shape):
        if ceil_mode:  # torch would not count our own padding as padding: settle the windows here
            extras = ceil_extras(size, kernel_shape, strides, dilations, pairs)
            pairs = [(begin, end + extra) for (begin, end), extra in zip(pairs, extras, strict=True)]
            ceil_mode = 0
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        padded, shift, pairs = pad_spatial(x, pairs, lowest), [begin for begin, _ in pairs], [(0, 0)] * rank
    begins = [begin for begin, _ in pairs]
    if output_count == 1:
        return _MAX[rank](padded, kernel_shape, strides, begins, dilations, bool(ceil_mode))
    values, flat = _MAX[rank](padded, kernel_shape, strides, begins, dilations, bool(ceil_mode), return_indices=True)
    return values, _flat_indices(flat, padded.shape[2:], shift, size, bool(storage_order))


def _torch_takes(pairs: Sequence[tuple[int, int]], kernel: Sequence[int]) -> bool:
    """Torch's pooling pads alike on both sides, by half the kernel at most."""
    return all(0 <= begin == end <= k // 2 for (begin, end), k in zip(pairs, kernel, strict=True))


def _flat_indices(
    flat: Tensor, padded: Sequence[int], shift: Sequence[int], size: Sequence[int], column_major: bool
) -> Tensor:
    """Torch counts within one channel of the padded input, ONNX over the whole tensor."""
    coordinates = []
    for length, offset in zip(reversed(padded), reversed(shift), strict=True):
        coordinates.append(flat % length - offset)
        flat = flat // length
    order = list(zip(coordinates, reversed(size), strict=True))  # last axis first
    index = torch.zeros_like(flat)
    for coordinate, length in order if column_major else reversed(order):
        index = index * length + coordinate
    planes = torch.arange(flat.shape[0] * flat.shape[1], device=flat.device)
    return index + math.prod(size) * planes.reshape(flat.shape[0], flat.shape[1], *[1] * len(size))


def MaxUnpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Puts each element back where MaxPool took it from, zeros elsewhere. Indices count over the inferred shape."""
    rank = len(kernel_shape)
    strides = strides or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    inferred = [
        (length - 1) * stride + k - pads[axis] - pads[axis + rank]
        for axis, (length, stride, k) in enumerate(zip(x.shape[2:], strides, kernel_shape, strict=True))
    ]
    shape = [*x.shape[:2], *inferred]
    flat = torch.zeros(math.prod(shape), dtype=x.dtype, device=x.device).scatter(0, indices.flatten(), x.flatten())
    result = flat.reshape(shape)
    if output_shape is None:
        return result
    return pad_spatial(result, [(0, wanted - have) for wanted, have in zip(output_shape[2:], inferred, strict=True)])
