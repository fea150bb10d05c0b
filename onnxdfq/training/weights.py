"""Weights that train behind the integers of their grid."""

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxdfq.tuning.quantized import BiasGrid
from passes.quantize.plan import TensorQuant

# Of a step: how far a weight lies from its integer at most when training starts. At .49 all that BRECQ rounded the
# other way flip back within a few steps, and the loss takes hundreds to come down again (ResNet-20, w3a3, w4a4).
CELL = 0.3


class ShadowWeight(nn.Module):
    """A float weight behind integers: forward passes see the integers, gradients pass the rounding straight through.

    Args:
        weight: Float, of any shape: where between its neighbours each integer begins.
        quant: The grid.
        integers: Same shape: those that the first forward pass gives.
        learn_scale: Whether the grid's scale may take any value and trains; otherwise a factor on the position does.

    Attributes:
        position: Same shape, in steps of the grid, so that one learning rate suits all layers.
        change: Per channel of the grid, log2 of a factor: on the scale, or else on the position. A power-of-two grid
            cannot be moved, but what is rounded on it can.

    Source: straight-through, arXiv 1308.3432; LSQ's step, arXiv 1902.08153; FlexRound's factor per output, arXiv
    2306.00317, Eq. 2.
    """

    start_scale: Float32[Tensor, "..."]

    def __init__(
        self,
        weight: Float32[NDArray[np.float32], "*shape"],
        quant: TensorQuant,
        integers: NDArray[np.integer],
        *,
        learn_scale: bool = False,
    ) -> None:
        super().__init__()
        shape = [] if quant.axis is None else [-1 if axis == quant.axis else 1 for axis in range(weight.ndim)]
        scale = torch.from_numpy(np.array(quant.scale, np.float32)).reshape(shape)
        self.register_buffer("start_scale", scale)
        start = torch.from_numpy(np.array(integers, np.float32))
        position = torch.from_numpy(np.array(weight, np.float32)) / scale
        self.position = nn.Parameter(position.clamp(start - CELL, start + CELL))
        self.change = nn.Parameter(torch.zeros_like(scale))
        self.learns_scale = learn_scale
        self.low, self.high = quant.range

    def forward(self) -> Float32[Tensor, "..."]:
        """The weight on its grid, same shape."""
        position = self._moved().clamp(self.low - 0.5, self.high + 0.5)
        rounded = position + (position.round().clamp(self.low, self.high) - position).detach()
        return self.scale() * rounded

    def scale(self) -> Float32[Tensor, "..."]:
        """Of the grid as it is now, shaped to multiply with the weight."""
        return self.start_scale * self.change.exp2() if self.learns_scale else self.start_scale

    @torch.no_grad()
    def growth(self) -> Float32[Tensor, "..."]:
        """() or (C,): by what its scale is larger than it was."""
        return self.change.exp2().reshape(-1) if self.learns_scale else torch.ones_like(self.change).reshape(-1)

    @torch.no_grad()
    def channel_scales(self) -> Float32[NDArray[np.float32], "..."]:
        """() or (C,): the scales of the grid."""
        found: NDArray[np.float32] = self.scale().cpu().numpy()
        return found.reshape(-1) if found.ndim else found

    @torch.no_grad()
    def value(self) -> Float32[NDArray[np.float32], "..."]:
        """The float weight behind the integers, in its own unit; same shape."""
        found: NDArray[np.float32] = (self.scale() * self._moved()).cpu().numpy()
        return found

    def _moved(self) -> Float32[Tensor, "..."]:
        return self.position if self.learns_scale else self.position * self.change.exp2()


class ShadowBias(nn.Module):
    """A float bias behind its multiple of the accumulator's step, through whose rounding gradients pass.

    Args:
        bias: (C_out,).
        grid: Of the accumulator as training begins; None where the bias stays a float.
    """

    steps: Float32[Tensor, "o"]

    def __init__(self, bias: Float32[NDArray[np.float32], "o"], grid: BiasGrid | None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.from_numpy(np.array(bias, np.float32)))
        self.grid = grid
        self.register_buffer("steps", torch.from_numpy(np.zeros(1, np.float32) if grid is None else grid.steps))

    def forward(self, growth: Float32[Tensor, "..."]) -> Float32[Tensor, "o"]:
        """The bias on its grid. growth: () or (C_out,), by what the steps are larger than they were."""
        # the channels of a grouped ConvTranspose repeat those of its weight
        steps = self.steps * growth.repeat(len(self.steps) // growth.numel())
        return self.value + ((self.value / steps).round() * steps - self.value).detach()
