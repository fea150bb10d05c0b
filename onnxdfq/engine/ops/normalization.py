"""Normalization."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def BatchNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """x: (N, C, ...). In training mode also the new running mean and variance; the momentum weighs the old ones."""
    if training_mode:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        batch_var, batch_mean = torch.var_mean(x, dim=axes, correction=0)
        new_mean = mean * momentum + batch_mean * (1 - momentum)
        new_var = var * momentum + batch_var * (1 - momentum)
        return F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon), new_mean, new_var
    if x.dtype is torch.float32:
        # One multiply and one add: faster than torch's kernel (twice on channels_last), and keeps no x for backward.
        factor = scale * torch.rsqrt(var + epsilon)
        shape = [1, -1] + [1] * (x.ndim - 2)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
    if any(parameter.requires_grad for parameter in (scale, bias, mean, var)):
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)  # computes in float32 inside
    return _FrozenBatchNorm.apply(x, scale, bias, mean, var, epsilon)  # type: ignore[no-untyped-call, no-any-return]


class _FrozenBatchNorm(torch.autograd.Function):
    """What F.batch_norm computes, with a gradient to x alone: dx = g * scale / sqrt(var + epsilon).

    That is the forward kernel once more. Torch's own backward kernel takes two to five times as long on the CPU, and
    reads x, which here need not be kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(scale, var)
        ctx.epsilon = epsilon
        return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, var = ctx.saved_tensors
        zeros = torch.zeros_like(scale)
        dx = F.batch_norm(gradients[0], zeros, var, scale, zeros, False, 0.0, ctx.epsilon)
        return dx, None, None, None, None, None


def InstanceNormalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def LayerNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    output_count: int = 1,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Over the axes from `axis` on. Further outputs, where asked for: the mean and 1 / standard deviation."""
    axis %= x.ndim
    shape = x.shape[axis:]
    if output_count == 1 and scale.shape == shape and (bias is None or bias.shape == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    axes = list(range(axis, x.ndim))
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) if stash_type == 1 else x
    var, mean = torch.var_mean(wide, dim=axes, correction=0, keepdim=True)
    inverse = torch.rsqrt(var + epsilon)
    result = ((wide - mean) * inverse).to(x.dtype) * scale
    return (result if bias is None else result + bias), mean, inverse


def RMSNormalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) if stash_type == 1 else x
    square = wide.square().mean(dim=list(range(axis % x.ndim, x.ndim)), keepdim=True)
    return (wide * torch.rsqrt(square + epsilon)).to(x.dtype) * scale


def GroupNormalization(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    """Scale and bias per channel (opset 21) or, as in opset 18, per group."""
    if scale.numel() == num_groups != x.shape[1]:
        scale = scale.repeat_interleave(x.shape[1] // num_groups)
        bias = bias.repeat_interleave(x.shape[1] // num_groups)
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def LRN(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    """Across channels: x / (bias + alpha / size · sum of squares over `size` channels around) ** beta."""
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    pads = [0, 0] * (x.ndim - 2) + [before, after]
    sums = F.pad(x.square(), pads).unfold(1, size, 1).sum(dim=-1)
    return x / torch.pow(bias + alpha / size * sums, beta)


def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zero stays zero."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def MeanVarianceNormalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    var, mean = torch.var_mean(x, dim=list(axes), correction=0, keepdim=True)
    return (x - mean) / (torch.sqrt(var) + 1e-9)
