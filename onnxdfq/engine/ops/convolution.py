"""Convolutions and matrix products."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine.ops.windows import pad_spatial, resolve_pads

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """x: (N, C, *size), w: (M, C / group, *kernel) → (N, M, *out)."""
    rank = x.ndim - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    pairs = resolve_pads(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if any(begin != end or begin < 0 for begin, end in pairs):
        x = pad_spatial(x, pairs)
        pairs = [(0, 0)] * rank
    return _CONVOLUTIONS[rank](x, w, b, strides, [begin for begin, _ in pairs], dilations, group)


def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """x: (N, C, *size), w: (C, M / group, *kernel) → (N, M, *out). Pads crop the result."""
    rank = x.ndim - 2
    strides = strides or (1,) * rank
    dilations = dilations or (1,) * rank
    extra = output_padding or (0,) * rank
    full = [
        (length - 1) * stride + (k - 1) * dilation + 1 + more
        for length, stride, k, dilation, more in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
    ]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") and not output_shape:
        output_shape = [length * stride for length, stride in zip(x.shape[2:], strides, strict=True)]
    if output_shape:
        pairs = []
        for length, wanted in zip(full, output_shape[-rank:], strict=True):
            half, rest = (length - wanted) // 2, (length - wanted) - (length - wanted) // 2
            pairs.append((half, rest) if auto_pad == "SAME_UPPER" else (rest, half))
    else:
        pairs = resolve_pads(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if all(begin == end >= 0 for begin, end in pairs) and all(
        m < max(s, d) for m, s, d in zip(extra, strides, dilations, strict=True)
    ):
        return _TRANSPOSED[rank](x, w, b, strides, [begin for begin, _ in pairs], extra, group, dilations)
    result = _TRANSPOSED[rank](x, w, None, strides, 0, 0, group, dilations)
    # Cropping to a size beyond the last tap is padding with zeros: pad_spatial does both. The bias comes after.
    result = pad_spatial(result, [(-begin, more - end) for (begin, end), more in zip(pairs, extra, strict=True)])
    return result if b is None else result + b.reshape(-1, *[1] * rank)


def MatMul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """alpha · a' b' + beta · c, with c broadcast."""
    a = a.T if transA else a
    if transB and alpha == beta == 1.0 and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    product = torch.matmul(a, b.T if transB else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None:
        return product
    return product + (c if beta == 1.0 else c * beta)


def Einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs)
