"""Views of images that a network should see as the same."""

import torch
from jaxtyping import Float
from torch import Tensor

SHIFT = 2  # pixels, of 32
MIXED = 1 / 3  # of a batch


def mixed(images: Float[Tensor, "n ..."], generator: torch.Generator) -> Float[Tensor, "n ..."]:
    """The images, the first third of the batch blended with others of it by a share of their own each.

    A teacher answers to a blend as it answers to any image. Source: mixup, arXiv 1710.09412, without its labels.
    """
    count = round(MIXED * len(images))
    others = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    share = torch.rand(count, *[1] * (images.ndim - 1), generator=generator).to(images)
    return torch.cat([torch.lerp(images[others], images[:count], share), images[count:]])


def flipped_and_shifted(
    images: Float[Tensor, "n ..."], generator: torch.Generator, channels: str = "first"
) -> Float[Tensor, "n ..."]:
    """The images, half of them mirrored, and all moved by up to a sixteenth of their size; borders are repeated.

    All of a batch move alike: one shift is one copy.

    Args:
        images: (N, C, H, W), or (N, H, W, C).
        generator: Of the draws.
        channels: "first" or "last": where they are.
    """
    if channels == "last":
        return flipped_and_shifted(images.permute(0, 3, 1, 2), generator).permute(0, 2, 3, 1)
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    height, width = images.shape[2:]
    found = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
    most = [max(1, size * SHIFT // 32) for size in (height, width)]
    down, right = (int(torch.randint(2 * size + 1, (1,), generator=generator)) for size in most)
    padded = torch.nn.functional.pad(found, (most[1], most[1], most[0], most[0]), mode="replicate")
    return padded[:, :, down : down + height, right : right + width]
