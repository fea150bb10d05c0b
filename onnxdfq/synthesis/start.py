"""Where images begin: dead leaves in standardised pixels, as they are or as the start of a search.

DGH, 128 images, 60 steps, BN distance from Gaussian pixels and from dead leaves: ResNet-20 .0055 and .0031 (another
seed: .0061 and .0029), MobileNetV1 .068 and .031; at 40 steps ResNet-20 .0154 and .0049.
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from onnxdfq.synthesis.dead_leaves import dead_leaves
from onnxdfq.synthesis.input_range import PIXEL_MEAN, PIXEL_STD

LEAST_SIDE = 8  # of an image in which leaves are more than spots
_CHANNELS = (1, 3, 4)  # of an input (N, H, W, C), which has more rows than that


def standardised_leaves(shape: tuple[int, ...], *, seed: int, first: int) -> Float32[Tensor, "n c h w"]:
    """Dead leaves in standardised pixels.

    Args:
        shape: (N, C, H, W), or (N, H, W, C) where only the last axis can be the channels: leaves lie in the image.
        seed: With an image's number, what it is drawn from.
        first: The number of the first image.
    """
    count, *image = shape
    channels_last = image[0] not in _CHANNELS and image[2] in _CHANNELS
    channels, height, width = (image[2], *image[:2]) if channels_last else image
    leaves = torch.from_numpy(dead_leaves(count, channels, height, width, seed=seed, first=first))
    leaves = leaves.sub_(PIXEL_MEAN).div_(PIXEL_STD)
    return leaves.permute(0, 2, 3, 1) if channels_last else leaves


def starting_images(
    shape: tuple[int, ...], *, seed: int, first: int, generator: torch.Generator
) -> Float32[Tensor, "n c h w"]:
    """Where a search begins, in standardised pixels: dead leaves, or Gaussian pixels for an input that is no picture.

    Args:
        shape: (N, C, H, W).
        seed: Of the leaves.
        first: The number of the first image.
        generator: Of the Gaussian pixels.
    """
    if min(shape[2:]) >= LEAST_SIDE:
        return standardised_leaves(shape, seed=seed, first=first)
    return torch.randn(shape, generator=generator)
