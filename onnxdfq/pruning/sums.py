"""What layers read, position by position, and the sums over all of them that least squares is solved from."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from passes.graph.editing import as_float64, constant_value, is_op
from passes.graph.filters import to_filters
from passes.graph.operators import LINEAR

UNFOLDED = 2**26  # bytes of the patches that lie in memory together
MOST_FEATURES = 2**13  # of an output: their covariances take half a gigabyte
Array = NDArray[np.float64]


@dataclass(kw_only=True)
class Sums:
    """Of n positions: sums of x, y, x xᵀ, x yᵀ and y², for each of g groups. x: (g, F), y: (g, O/g)."""

    count: int
    x: Float64[Tensor, "g f"]
    y: Float64[Tensor, "g o"]
    xx: Float64[Tensor, "g f f"]
    xy: Float64[Tensor, "g f o"]
    yy: Float64[Tensor, "g o"]

    @classmethod
    def zero(cls, groups: int, features: int, outputs: int, device: str) -> "Sums":
        """Of no position yet."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            count=0,
            x=zeros(groups, features),
            y=zeros(groups, outputs),
            xx=zeros(groups, features, features),
            xy=zeros(groups, features, outputs),
            yy=zeros(groups, outputs),
        )

    def add(self, x: Float[Tensor, "g f p"], y: Float[Tensor, "g o p"]) -> None:
        """Positions, with what is wanted of them."""
        self.count += x.shape[2]
        self.x += x.sum(dim=2, dtype=torch.float64)
        self.y += y.sum(dim=2, dtype=torch.float64)
        self.xx += (x @ x.mT).double()
        self.xy += (x @ y.mT).double()
        self.yy += y.square().sum(dim=2, dtype=torch.float64)

    def moments(self, *, centred: bool = True) -> "SecondMoments":
        """About the means, or about zero."""
        x, y = self.x / self.count * centred, self.y / self.count * centred
        xx = self.xx / self.count - x[:, :, None] * x[:, None, :]
        xy = self.xy / self.count - x[:, :, None] * y[:, None, :]
        yy = self.yy / self.count - y * y
        return SecondMoments(*(each.cpu().numpy() for each in (x, y, xx, xy, yy)))


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """x (g, F) and y (g, O/g): what the others are taken about. xx, xy, yy: means of the products; yy of each alone."""

    x: Float64[Array, "g f"]
    y: Float64[Array, "g o"]
    xx: Float64[Array, "g f f"]
    xy: Float64[Array, "g f o"]
    yy: Float64[Array, "g o"]


def constant_weight(node: ir.Node) -> Float64[Array, "_ _ ..."] | None:
    """Of Conv, ConvTranspose, Gemm and MatMul, where its positions are known; else None."""
    weight = constant_value(node.inputs[1]) if is_op(node, *LINEAR) else None
    if weight is None or weight.dtype.kind != "f" or weight.ndim < 2 or not weight.size:
        return None
    if is_op(node, "Gemm", "MatMul"):
        return as_float64(weight) if weight.ndim == 2 and not node.attributes.get_int("transA", 0) else None
    plain = (
        node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and "output_shape" not in node.attributes
    )
    return as_float64(weight) if weight.ndim in (3, 4) and plain else None


def empty_sums(node: ir.Node, weight: Float64[Array, "_ _ ..."], device: str) -> Sums:
    """For a layer: as many groups, features and outputs as it has."""
    groups, outputs, inputs, taps = to_filters(node, weight).shape
    return Sums.zero(groups, inputs * taps, outputs, device)


def add_batch(node: ir.Node, x: Float[Tensor, "n ..."], y: Float[Tensor, "n ..."], sums: Sums) -> None:
    """One batch: x the layer's input, y its output.

    The features of a position are in the order of `to_filters`.
    """
    groups = sums.x.shape[0]
    if is_op(node, "Gemm", "MatMul"):
        sums.add(node.attributes.get_float("alpha", 1.0) * _last_first(x), _last_first(y))
        return
    weight = constant_value(node.inputs[1])
    assert weight is not None
    taps = weight.shape[2:]
    if len(taps) == 1:
        x, y = x[:, :, None], y[:, :, None]
    height, width = (1, *taps)[-2:]
    x, strides, dilations = _padded(node, x, taps)
    at_once = max(UNFOLDED // max(4 * math.prod(y.shape[2:]) * x.shape[1] * height * width, 1), 1)
    for first in range(0, len(x), at_once):
        part, goal = x[first : first + at_once], y[first : first + at_once]
        patches = torch.nn.functional.unfold(part, (height, width), dilation=dilations, stride=strides)
        sums.add(_by_group(patches, groups), _by_group(goal.flatten(2), groups))


def _padded(
    node: ir.Node, x: Float[Tensor, "n c h w"], taps: tuple[int, ...]
) -> tuple[Float[Tensor, "n c ..."], tuple[int, ...], tuple[int, ...]]:
    """The input with its borders, strides and dilations; of a ConvTranspose those of the convolution that it is, with
    zeros between the numbers of the input."""
    ones = [1] * len(taps)
    strides, dilations = (list(node.attributes.get_ints(name, ones)) for name in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * len(taps)))
    low, high = pads[: len(taps)], pads[len(taps) :]
    if is_op(node, "ConvTranspose"):
        spread = x.new_zeros(*x.shape[:2], *(s * n for s, n in zip((1, *strides)[-2:], x.shape[2:], strict=True)))
        spread[..., :: (1, *strides)[-2], :: strides[-1]] = x
        more = node.attributes.get_ints("output_padding", [0] * len(taps))
        reach = [d * (k - 1) for d, k in zip(dilations, taps, strict=True)]
        low = [r - pad for r, pad in zip(reach, low, strict=True)]
        high = [r - pad + m - (s - 1) for r, pad, m, s in zip(reach, high, more, strides, strict=True)]
        x, strides = spread, ones
    around = [pad for axis in reversed(range(len(taps))) for pad in (low[axis], high[axis])]
    return torch.nn.functional.pad(x, around), (1, *strides)[-2:], (1, *dilations)[-2:]


def _last_first(values: Float[Tensor, "*n c"]) -> Float[Tensor, "1 c p"]:
    return values.reshape(-1, values.shape[-1]).T[None]


def _by_group(values: Float[Tensor, "n c p"], groups: int) -> Float[Tensor, "g _ _"]:
    """(N, C, P) as (g, C/g, N P)."""
    count, channels, positions = values.shape
    return values.reshape(count, groups, channels // groups, positions).permute(1, 2, 0, 3).flatten(2)
