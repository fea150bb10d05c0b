"""Padding and sliding windows, as convolution and pooling share them."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def pad_spatial(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pads the last axes of x by (begin, end) each, first spatial axis first; negative numbers crop."""
    if not any(begin or end for begin, end in pads):
        return x
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def resolve_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) per spatial axis. `pads` is in ONNX order: all begins, then all ends."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        resolved = []
        for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
            total = max((math.ceil(length / stride) - 1) * stride + (k - 1) * dilation + 1 - length, 0)
            half, rest = total // 2, total - total // 2
            resolved.append((half, rest) if auto_pad == "SAME_UPPER" else (rest, half))
        return resolved
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * len(size)
    return list(zip(pads[: len(size)], pads[len(size) :], strict=True))


def ceil_extras(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> list[int]:
    """What `ceil_mode` adds at the end of each axis, so that a last partial window fits.

    A window that would start beyond the input and its padding at the beginning is none, as in torch.
    """
    extras = []
    for length, k, stride, dilation, (begin, end) in zip(size, kernel, strides, dilations, pads, strict=True):
        span = (k - 1) * dilation + 1
        count = math.ceil((length + begin + end - span) / stride) + 1
        if (count - 1) * stride >= length + begin:
            count -= 1
        extras.append(max((count - 1) * stride + span - (length + begin + end), 0))
    return extras


def windows(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """A view (N, C, *out, *kernel) of x (N, C, *size), already padded."""
    rank = len(kernel)
    for axis, (k, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * dilation + 1, stride)
    for axis, dilation in enumerate(dilations, start=2 + rank):
        if dilation > 1:
            x = x[(slice(None),) * axis + (slice(None, None, dilation),)]
    return x
