"""Where images begin: dead leaves in standardised pixels, as they are or as the start of a search.

DGH, 128 images, 60 steps, BN distance from Gaussian pixels and from dead leaves: ResNet-20 .0055 and .0031 (another
seed: .0061 and .0029), MobileNetV1 .068 and .031; at 40 steps ResNet-20 .0154 and .0049.
"""

import torch
from jaxtyping import Float32
from torch import Tensor

from onnxdfq.model_file import InputSpec
from onnxdfq.synthesis.dead_leaves import dead_leaves
from onnxdfq.synthesis.input_range import PIXEL_MEAN, PIXEL_STD

LEAST_SIDE = 8  # of an image in which leaves are more than spots


def starting_images(
    spec: InputSpec, shape: tuple[int, ...], *, seed: int, first: int, generator: torch.Generator
) -> Float32[Tensor, "n c h w"]:
    """Samples in standardised units: dead leaves, or Gaussian numbers for an input that is no picture.

    Args:
        spec: Of the input.
        shape: (N, C, H, W), see `InputSpec.planes`; a canvas may be larger than the input.
        seed: With an image's number, what leaves are drawn from.
        first: The number of the first image.
        generator: Of the Gaussian numbers.
    """
    if spec.image is None or min(shape[2:]) < LEAST_SIDE:
        return torch.randn(shape, generator=generator)
    leaves = torch.from_numpy(dead_leaves(*shape, seed=seed, first=first))
    return leaves.sub_(PIXEL_MEAN).div_(PIXEL_STD)
