"""Activation quantizers while they are tuned: learned or searched scales, and QDrop's mixing."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from passes.quantize.plan import TensorQuant


def with_whole_reciprocal(scale: float) -> float:
    """The float32 nearest to `scale` that is 1 / n for a whole n, or just below that: its reciprocal is at least n."""
    whole = max(1, round(1 / scale))
    nearest = np.float32(1 / whole)
    return float(nearest if float(nearest) * whole <= 1 else np.nextafter(nearest, np.float32(0)))


class FakeQuantize(torch.autograd.Function):
    """y = scale * clip(round(x / scale), low, high), as Quantize and Dequantize around zero.

    dy/dx is 1 inside of the range and 0 outside; dy/dscale is LSQ's (arXiv 1902.08153, Eq. 3).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*shape"], scale: Float32[Tensor, ""], low: int, high: int
    ) -> Float[Tensor, "*shape"]:
        ctx.save_for_backward(x, scale)
        ctx.limits = (low, high)
        # one new tensor and not four: fresh memory costs six times what is computed in it
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        x, scale = ctx.saved_tensors
        low, high = ctx.limits
        step = float(scale)
        # one pass, and no mask in memory
        dx = torch.ops.aten.hardtanh_backward(grad, x, (low - 0.5) * step, (high + 0.5) * step)
        if not ctx.needs_input_grad[1]:
            return dx, None, None, None
        # inside: round(x/s) - x/s, outside: the end of the range
        rounded = (x / scale).round_().clamp_(low, high).mul_(grad).sum(dtype=torch.float32)
        return dx, rounded - (x / scale).mul_(dx).sum(dtype=torch.float32), None, None


class RandomMasks:
    """Masks of 0 and 1, cut from one long row of random bits: to draw them anew costs as much as a convolution.

    Args:
        share: The probability of 1.
        seed: Of the row and of where masks are cut from it.
        device: Where masks lie.
        dtype: Of masks.
    """

    def __init__(self, share: float, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._share, self._device, self._dtype = share, device, dtype
        self._row = torch.empty(0)

    def like(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """A mask of 0 and 1, in the shape and memory order of `values`."""
        count = values.numel()
        if len(self._row) < 2 * count:
            drawn = torch.rand(4 * count, generator=self._generator) < self._share
            self._row = drawn.to(self._device, self._dtype)
        start = int(torch.randint(len(self._row) - count, (1,), generator=self._generator))
        strides = values.stride()
        order = sorted(range(values.ndim), key=lambda axis: -strides[axis])
        return (
            self._row[start : start + count]
            .view([values.shape[axis] for axis in order])
            .permute([order.index(axis) for axis in range(values.ndim)])
        )


class ActivationQuantizer(nn.Module):
    """The quantizer of one activation, per tensor.

    Args:
        quant: The grid to begin with.
        learned: Whether the scale has a gradient.
        searched: Whether other powers of two may be tried for it.
        whole_reciprocal: Whether it is to be one over a whole number in the end.

    tunable: whether the scale was learned or searched when the quantizer was made. masks: where set, which elements are
    quantized; the others keep their float value (QDrop, arXiv 2203.05740).
    """

    def __init__(self, quant: TensorQuant, *, learned: bool, searched: bool, whole_reciprocal: bool = False) -> None:
        super().__init__()
        self.low, self.high = quant.range
        self.log2_scale = nn.Parameter(torch.tensor(float(quant.scale)).log2(), requires_grad=learned)
        self._start = float(self.log2_scale.detach())
        self.searched = searched
        self.tunable = learned or searched
        self._whole_reciprocal = whole_reciprocal
        self.masks: RandomMasks | None = None

    @property
    def scale(self) -> float:
        """The scale as it is now, or the nearest that is allowed; in the activation's own unit."""
        scale = float(self.log2_scale.detach().exp2())
        return with_whole_reciprocal(scale) if self._whole_reciprocal else scale

    @torch.no_grad()
    def growth(self) -> Float32[Tensor, ""]:
        """By what the scale is larger than it was when the quantizer was made."""
        return (self.log2_scale - self._start).exp2()

    def freeze(self) -> None:
        """Keep the scale from now on: the block that it belongs to is tuned."""
        if self._whole_reciprocal:
            self.log2_scale.data.fill_(math.log2(self.scale))
        self.log2_scale.requires_grad_(False)
        self.searched = False

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """x on the grid, same type."""
        return self.mixed(x, x)

    def mixed(self, quantized: Float[Tensor, "*shape"], exact: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`quantized` on the grid; where a mask of `masks` is 0, `exact` instead. All of one type."""
        scale = self.log2_scale.exp2()
        result: Tensor = FakeQuantize.apply(quantized, scale, self.low, self.high)  # type: ignore[no-untyped-call]
        if self.masks is None:
            return result
        return torch.lerp(exact, result, self.masks.like(result))
