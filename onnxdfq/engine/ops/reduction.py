"""Reductions, arg-reductions and running sums."""

from collections.abc import Callable

import torch
from torch import Tensor

from onnxdfq.engine.host import Int, Ints


def _reduce(
    function: Callable[[Tensor, list[int], bool], Tensor],
    x: Tensor,
    axes: tuple[int, ...] | None,
    keepdims: int,
    noop_with_empty_axes: int,
) -> Tensor:
    """Over all axes where none are given, unless `noop_with_empty_axes`: then every element is a group of its own."""
    if not axes and noop_with_empty_axes:
        return function(x.unsqueeze(0), [0], False)
    return function(x, list(axes) if axes else list(range(x.ndim)), bool(keepdims)).to(x.dtype)


def ReduceSum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: x.sum(d, k) if d else x, x, axes, keepdims, noop_with_empty_axes)


def ReduceMean(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: _real(x).mean(d, k), x, axes, keepdims, noop_with_empty_axes)


def ReduceMax(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(_amax, x, axes, keepdims, noop_with_empty_axes)


def ReduceMin(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(_amin, x, axes, keepdims, noop_with_empty_axes)


def ReduceProd(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(_product, x, axes, keepdims, noop_with_empty_axes)


def ReduceL1(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: x.abs().sum(d, k), x, axes, keepdims, noop_with_empty_axes)


def ReduceL2(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: torch.linalg.vector_norm(_real(x), 2, d, k), x, axes, keepdims, noop_with_empty_axes)


def ReduceSumSquare(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: x.square().sum(d, k), x, axes, keepdims, noop_with_empty_axes)


def ReduceLogSum(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: _real(x).sum(d, k).log(), x, axes, keepdims, noop_with_empty_axes)


def ReduceLogSumExp(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return _reduce(lambda x, d, k: torch.logsumexp(_real(x), d, k), x, axes, keepdims, noop_with_empty_axes)


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def _amax(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    if x.dtype is torch.bool:
        return _any(x, axes, keepdims)
    if any(
        x.shape[axis] == 0 for axis in axes
    ):  # torch refuses; in ONNX the greatest of nothing is the least value there is
        return x.sum(axes, keepdims).fill_(float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min)
    return x.amax(axes, keepdims)


def _amin(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    if x.dtype is torch.bool:
        return torch.logical_not(_any(torch.logical_not(x), axes, keepdims))
    if any(x.shape[axis] == 0 for axis in axes):
        return x.sum(axes, keepdims).fill_(float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).max)
    return x.amin(axes, keepdims)


def _any(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    return x.any(axes, keepdims) if axes else x  # to torch no axes means all of them


def _product(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):  # torch takes one axis at a time
        x = x.prod(axis, keepdims)
    return x


def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, bool(keepdims))
    return torch.argmax(x, axis, bool(keepdims))


def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, bool(keepdims))
    return torch.argmin(x, axis, bool(keepdims))


def CumSum(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _scan(lambda t: torch.cumsum(t, axis), 0, x, axis, exclusive, reverse)


def CumProd(x: Tensor, axis: Int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _scan(lambda t: torch.cumprod(t, axis), 1, x, axis, exclusive, reverse)


def _scan(
    function: Callable[[Tensor], Tensor], neutral: int, x: Tensor, axis: int, exclusive: int, reverse: int
) -> Tensor:
    x = x.flip(axis) if reverse else x
    if exclusive:  # each element stands for those before it
        x = torch.cat([torch.full_like(x.narrow(axis, 0, 1), neutral), x.narrow(axis, 0, x.shape[axis] - 1)], dim=axis)
    result = function(x).to(x.dtype)
    return result.flip(axis) if reverse else result
