"""The image pipeline of DGH (arXiv 2410.22110, §5.2; order and constants as the public implementation has them), and
total variation.

prepare (each differentiable visit): horizontal flip, smoothing, random crop, clamp.
finalize (what is delivered): smoothing, centre crop, clamp.
Images live on a canvas larger than the network's input, in standardised pixel units (see input_range.py).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

SMOOTHING_SIGMA = 1.25
VARIATION_NUMBERS = 32 * 3 * 224 * 224  # of the batch that published weights and aims of total variation are for


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One augmentation, shared by a batch: mirrored or not, and where the crop starts on the canvas."""

    flip: bool
    top: int
    left: int


def canvas_extra(side: int) -> int:
    """Pixels by which a canvas side exceeds the input's: 32 at 224 as in the paper's code, in proportion elsewhere.

    4 at 32, 2 at 8, and none below 4 pixels, where a shifted crop would be another image.
    """
    return 2 * max(1, round(side / 14)) if side >= 4 else 0


def draw(generator: torch.Generator, extra: tuple[int, int]) -> Draw:
    """A random augmentation. extra: (rows, columns) of canvas beyond the input."""
    top = int(torch.randint(extra[0] + 1, (), generator=generator))
    left = int(torch.randint(extra[1] + 1, (), generator=generator))
    return Draw(flip=bool(torch.randint(2, (), generator=generator)), top=top, left=left)


def smooth(images: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
    """3x3 Gaussian of sigma 1.25 with zero padding.

    The Gaussian separates, so two passes of three shifted sums stand for a depthwise convolution, which the CPU
    library runs slowly for three channels.
    """
    side = torch.exp(torch.tensor(-1.0 / (2 * SMOOTHING_SIGMA**2)))
    edge, centre = float(side / (1 + 2 * side)), float(1 / (1 + 2 * side))
    for pad, axis in (((0, 0, 1, 1), 2), ((1, 1), 3)):
        length = images.shape[axis]
        padded = F.pad(images, pad)
        outer = padded.narrow(axis, 0, length) + padded.narrow(axis, 2, length)
        images = torch.add(centre * images, outer, alpha=edge)
    return images


def clamp_straight_through(
    images: Float32[Tensor, "n c h w"], low: Float32[Tensor, "c 1 1"], high: Float32[Tensor, "c 1 1"]
) -> Float32[Tensor, "n c h w"]:
    """Clamp values to [low, high] per channel; the gradient passes as if nothing had been clamped."""
    return images + (images.detach().clamp(low, high) - images.detach())


def prepare(
    canvas: Float32[Tensor, "n c _ _"],
    size: tuple[int, int],
    low: Float32[Tensor, "c 1 1"],
    high: Float32[Tensor, "c 1 1"],
    how: Draw,
) -> Float32[Tensor, "n c {size[0]} {size[1]}"]:
    """The images of one differentiable visit: canvas (N, C, H + extra, W + extra) -> (N, C, H, W)."""
    if how.flip:
        canvas = canvas.flip(3)
    image = smooth(canvas)[:, :, how.top : how.top + size[0], how.left : how.left + size[1]]
    return clamp_straight_through(image, low, high)


def finalize(
    canvas: Float32[Tensor, "n c _ _"],
    size: tuple[int, int],
    low: Float32[Tensor, "c 1 1"],
    high: Float32[Tensor, "c 1 1"],
) -> Float32[Tensor, "n c {size[0]} {size[1]}"]:
    """The images that are delivered: canvas (N, C, H + extra, W + extra) -> (N, C, H, W)."""
    top, left = (canvas.shape[2] - size[0]) // 2, (canvas.shape[3] - size[1]) // 2
    return smooth(canvas)[:, :, top : top + size[0], left : left + size[1]].clamp(low, high)


def total_variation(images: Float32[Tensor, "n c h w"]) -> Float32[Tensor, ""]:
    """L2 norms of the differences between neighbours along rows, columns and both diagonals, summed, as if the batch
    had `VARIATION_NUMBERS` pixels of colour.

    Source: DeepInversion, arXiv 1912.08795, R_TV, as its public code has it.
    """
    differences = (
        images[..., :-1] - images[..., 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., 1:, :-1] - images[..., :-1, 1:],
        images[..., :-1, :-1] - images[..., 1:, 1:],
    )
    norms = torch.stack([difference.norm() for difference in differences])
    return math.sqrt(VARIATION_NUMBERS / images.numel()) * norms.sum()
