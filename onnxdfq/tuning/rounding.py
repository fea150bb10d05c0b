"""AdaRound's variable: whether each weight is rounded down or up (Nagel et al., arXiv 2004.10568)."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int8
from numpy.typing import NDArray
from torch import Tensor, nn

from passes.quantize.plan import TensorQuant

# h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), Eq. 23: reaches 0 and 1, where the sigmoid alone has no gradient left
STRETCH, SHIFT = 1.2, -0.1


class WeightRounding(nn.Module):
    """One weight on its grid: scale * clip(floor(w / scale) + h(V)), with h from 0 (down) to 1 (up).

    V starts so that the value is the float weight's.

    Args:
        weight: Of any shape.
        quant: Its grid, whose range clips.
        integers: Same shape, to start from instead: each is then one of the two that V decides between, the other is
            its neighbour on the side of the float weight, and V starts half way between integer and float weight.
        learn_scale: Whether the scale may take any value and trains, while what lies below each weight stays.
        saturating: Which of given integers (same shape) a kernel would saturate on with their neighbours. These are
            rounded towards zero in the end, which the integers that training starts from allow.

    v: same shape. change: log2 of what the scale is multiplied with. range: least and greatest integer.

    Source: AdaRound, arXiv 2004.10568, Eq. 23 for h; GENIE-M, Jeon et al., CVPR 2023, for scales that train with it.
    """

    floor: Float32[Tensor, "..."]
    scale: Float32[Tensor, "..."]

    def __init__(
        self,
        weight: Float32[NDArray[np.float32], "*shape"],
        quant: TensorQuant,
        integers: Int8[NDArray[np.int8], "*shape"] | None = None,
        *,
        learn_scale: bool = False,
        saturating: Callable[[NDArray[np.int8]], NDArray[np.bool_]] | None = None,
    ) -> None:
        super().__init__()
        shape = [-1 if axis == quant.axis else 1 for axis in range(weight.ndim)]
        scale = torch.from_numpy(np.array(quant.scale, np.float32)).reshape(shape if quant.axis is not None else [])
        scaled = torch.from_numpy(np.array(weight, np.float32)) / scale
        start = None if integers is None else torch.from_numpy(np.array(integers, np.float32))
        floor = scaled.floor() if start is None else torch.where(scaled >= start, start, start - 1)
        up = (scaled - floor).clamp(0.01, 0.99)  # on the grid already: leave it a gradient
        if start is not None:
            up = (up + start - floor) / 2
        self.register_buffer("scale", scale)
        self.register_buffer("floor", floor)
        self.change = nn.Parameter(torch.zeros_like(scale), requires_grad=learn_scale)
        self.v = nn.Parameter(-torch.log(STRETCH / (up - SHIFT) - 1))
        self.range = quant.range
        self._saturating = saturating

    def up(self) -> Float32[Tensor, "..."]:
        """h(V), same shape: between 0 and 1."""
        return (STRETCH * torch.sigmoid(self.v) + SHIFT).clamp(0, 1)

    def forward(self) -> Float32[Tensor, "..."]:
        """The weight with soft rounding, same shape."""
        return self.scale * self.change.exp2() * (self.floor + self.up()).clamp(*self.range)

    @torch.no_grad()
    def channel_scales(self) -> Float32[NDArray[np.float32], "..."]:
        """() or (C,): the scales of the grid as they are now."""
        found: NDArray[np.float32] = (self.scale * self.change.exp2()).cpu().numpy()
        return found.reshape(-1) if found.ndim else found

    def penalty(self, exponent: float) -> Float32[Tensor, ""]:
        """Sum over all weights of 1 - |2 h - 1|^b (Eq. 24): 0 once each is rounded."""
        return (1 - (2 * self.up() - 1).abs().pow(exponent)).sum()

    @torch.no_grad()
    def harden(self) -> None:
        """Round every weight up or down: V to where h is 0 or 1."""
        up = self.v >= 0
        if self._saturating is not None:
            saturating = torch.from_numpy(self._saturating(self.integers())).to(up.device)
            up = torch.where(saturating, self.floor < 0, up)
        self.v.copy_(torch.where(up, 10.0, -10.0))

    @torch.no_grad()
    def integers(self) -> Int8[NDArray[np.int8], "..."]:
        """The integers that the file gets, same shape."""
        rounded: NDArray[np.int8] = (self.floor + (self.v >= 0)).clamp(*self.range).to(torch.int8).cpu().numpy()
        return rounded
