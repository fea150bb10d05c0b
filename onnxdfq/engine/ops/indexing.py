"""Gather, scatter, select and sort."""

import torch
from torch import Tensor

from onnxdfq.engine.host import Int


def _wrapped(indices: Tensor, length: int) -> Tensor:
    """Negative indices count from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + length, indices)


def Gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= data.ndim
    chosen = data.index_select(axis, _wrapped(indices, data.shape[axis]).reshape(-1))
    return chosen.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def GatherElements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return data.gather(axis, _wrapped(indices, data.shape[axis]))


def GatherND(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """indices: (*batch, ..., K): each row of K picks data[batch][row]."""
    index = _batch_index(indices.shape, batch_dims, indices.device)
    columns = [_wrapped(column, data.shape[batch_dims + k]) for k, column in enumerate(indices.unbind(-1))]
    return data[(*index, *columns)]


def _batch_index(shape: torch.Size, batch_dims: int, device: torch.device) -> list[Tensor]:
    rank = len(shape) - 1
    return [
        torch.arange(shape[axis], device=device).reshape([-1 if other == axis else 1 for other in range(rank)])
        for axis in range(batch_dims)
    ]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def ScatterElements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    index, updates = _wrapped(indices, data.shape[axis]), updates.to(data.dtype)
    if reduction == "none":
        return data.scatter(axis, index, updates)
    return data.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def ScatterND(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """data[row] = updates for each row of `indices` (..., K), or the reduction of both."""
    depth = indices.shape[-1]
    lead, rest = data.shape[:depth], data.shape[depth:]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for length, column in zip(lead, indices.unbind(-1), strict=True):
        flat = flat * length + _wrapped(column, length)
    rows = data.reshape(lead.numel(), rest.numel())
    index = flat.reshape(-1, 1).expand(-1, rest.numel())
    values = updates.to(data.dtype).reshape(index.shape)
    if reduction == "none":
        return rows.scatter(0, index, values).reshape(data.shape)
    return rows.scatter_reduce(0, index, values, _REDUCTIONS[reduction]).reshape(data.shape)


def OneHot(indices: Tensor, depth: Int, values: Tensor, *, axis: int = -1) -> Tensor:
    """`values` is (off, on). An index out of [-depth, depth) is off everywhere."""
    places = torch.arange(depth, device=indices.device)
    axis = axis if axis >= 0 else axis + indices.ndim + 1
    hit = indices.long().unsqueeze(axis)
    hit = torch.where(hit < 0, hit + depth, hit) == places.reshape(-1, *[1] * (indices.ndim - axis))
    return torch.where(hit, values[1], values[0])


def NonZero(x: Tensor) -> Tensor:
    return torch.nonzero(x).T


def Compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    chosen = torch.nonzero(condition).flatten()
    return x.flatten()[chosen] if axis is None else x.index_select(axis, chosen)


def TopK(x: Tensor, k: Int, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Of equal elements the one with the lower index comes first: hence a stable sort, and no torch.topk."""
    values, indices = torch.sort(x, dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, k), indices.narrow(axis, 0, k)


def Unique(
    x: Tensor,
    *,
    axis: int | None = None,
    sorted: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unique elements (or slices along `axis`), the index of the first of each, the inverse, and the counts."""
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True, dim=axis)
    inverse = inverse.flatten()
    positions = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, positions, "amin")
    if not sorted:  # in the order of first occurrence
        order = first.argsort()
        values, first, counts = values.index_select(axis or 0, order), first[order], counts[order]
        inverse = order.argsort()[inverse]
    return values, first, inverse, counts
