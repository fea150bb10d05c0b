"""Data mixing: a second image, made small, hides a box of the first (MixMix, Eq. 7 to 9)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from onnxdfq.synthesis.view import resized


@dataclass(frozen=True, kw_only=True)
class Box:
    """Rows top to bottom and columns left to right of an image, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    def share(self, height: int, width: int) -> float:
        """beta of Eq. (9): its area, of that of the image."""
        return (self.bottom - self.top) * (self.right - self.left) / (height * width)


def draw_box(height: int, width: int, generator: torch.Generator) -> Box:
    """A box whose sides and centre are uniform; what reaches out of the image is cut off. It may be empty.

    Ours, where the paper says no more than that the sides are uniform: the centre, and the cut.
    """

    def side(length: int) -> tuple[int, int]:
        extent, centre = (torch.rand(2, generator=generator, dtype=torch.float64) * length).tolist()
        low, high = round(centre - extent / 2), round(centre + extent / 2)
        return max(low, 0), min(high, length)

    (top, bottom), (left, right) = side(height), side(width)
    return Box(top=top, bottom=bottom, left=left, right=right)


def mixed(
    images: Float32[Tensor, "n c h w"], partners: Int64[Tensor, "n"], box: Box
) -> tuple[Float32[Tensor, "n c h w"], float]:
    """Images with their partners in the box: the whole of each, where CutMix would cut the box out of it.

    Args:
        images: Gradients pass to both of a pair.
        partners: Place of the image that goes into each one's box.
        box: The same for all.

    Returns:
        (1 - alpha) X1 + alpha g(X2) of Eq. (8), and beta.
    """
    height, width = images.shape[2:]
    share = box.share(height, width)
    if share == 0:
        return images, 0.0
    inside = resized(images[partners], (box.bottom - box.top, box.right - box.left))
    found = images.clone()
    found[:, :, box.top : box.bottom, box.left : box.right] = inside
    return found, share
