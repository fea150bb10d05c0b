"""Where images begin: dead leaves in standardised pixels, as they are or as the start of a search.

DGH, 128 images, 60 steps, BN distance from Gaussian pixels and from dead leaves: ResNet-20 .0055 and .0031 (another
seed: .0061 and .0029), MobileNetV1 .068 and .031; at 40 steps ResNet-20 .0154 and .0049.
"""

from typing import Any

import torch
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.model_file import InputSpec
from onnxdfq.progress import Progress
from onnxdfq.synthesis.dead_leaves import dead_leaves
from onnxdfq.synthesis.hyperparameters import batch_generators, delivered
from onnxdfq.synthesis.input_range import PIXEL_MEAN, PIXEL_STD, InputRange

LEAST_SIDE = 8  # of an image in which leaves are more than spots


def starting_samples(
    spec: InputSpec, scale: InputRange, count: int, *, seed: int, progress: Progress | None = None
) -> Shaped[NDArray[Any], "n ..."]:
    """Samples of an input as it takes them, to be used as they are.

    Args:
        spec: Of the input.
        scale: Its range.
        count: How many.
        seed: With a sample's number, what it is drawn from.
        progress: Called after each.
    """
    low, high = scale.limits(torch.device("cpu"))
    planes = torch.empty(count, *spec.planes)
    for number, (sample, generator) in enumerate(
        zip(torch.split(planes, 1), batch_generators(seed, count), strict=True)
    ):
        start = starting_images(spec, tuple(sample.shape), seed=seed, first=number, generator=generator)
        sample.copy_(scale.to_model(start.clamp(low, high)))
        if progress is not None:
            progress(number + 1, count, "")
    return delivered(spec, planes.numpy())


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
