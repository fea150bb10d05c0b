"""Attention as photographs get it: a few spots of the picture, here drawn at random, which images are led to."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.synthesis.attention import leading_tokens

MOST_SPOTS = 5  # of a head's attention, 1 at least
DEVIATION = (0.05, 0.25)  # of a spot, between these shares of the side
EARLIEST = 0.5  # attentions before this share of the depth are left as they are


class AttentionPrior:
    """How far the later attentions are from spots drawn for each image and head, the later the more it counts.

    Spots are drawn when a loss is first asked for, and stay. Source: SARDFQ, arXiv 2412.16553, its attention prior;
    number and size of spots are ours, and that they sum to 1 over the picture as attention does.

    Args:
        random: Draws them.
    """

    def __init__(self, random: torch.Generator) -> None:
        self._random = random
        self._wanted: dict[int, Float32[Tensor, "n h p"]] = {}

    def loss(self, weights: Sequence[Float[Tensor, "..."]], images: int) -> Float32[Tensor, ""]:
        """Sum over attentions and heads of mean squared errors, mean over images.

        weights: of each attention, in order of depth, as `AttendingNetwork.forward` gives them.
        """
        total = torch.zeros(())
        for place, value in enumerate(weights, 1):
            share = place / len(weights)
            found = attention_to_patches(value, images)
            if share < EARLIEST or found is None:
                continue
            if place not in self._wanted:
                self._wanted[place] = spots(found.shape, self._random).to(found.device)
            errors = (found - self._wanted[place]).square().mean((0, 2))
            total = total.to(errors.device) + share * errors.sum()
        return total


def attention_to_patches(weights: Float[Tensor, "..."], images: int) -> Float32[Tensor, "n h p"] | None:
    """How much of each head's attention each patch gets: that of the first token where one stands before the patches,
    else the mean over all. None where the attention is not over the patches of one image.

    weights: (N · heads, Q, K), or (N, heads, Q, K).
    """
    queries, keys = weights.shape[-2:]
    leading = leading_tokens(keys)
    if queries != keys or keys - leading <= 1 or weights.numel() % (images * queries * keys) or len(weights) % images:
        return None
    heads = weights.float().reshape(images, -1, queries, keys)
    rows = heads[:, :, 0] if leading else heads.mean(2)
    return rows[..., leading:]


def spots(shape: tuple[int, ...], random: torch.Generator) -> Float32[Tensor, "n h p"]:
    """Mixtures of Gaussians on a square of P patches, of sum 1, one for each of (N, H)."""
    count, heads, patches = shape
    side = round(patches**0.5)
    place = (torch.arange(side) + 0.5) / side

    def drawn(*size: int) -> Tensor:
        return torch.rand(count, heads, MOST_SPOTS, *size, generator=random)

    centre = drawn(2)
    deviation = DEVIATION[0] + (DEVIATION[1] - DEVIATION[0]) * drawn(1)
    number = torch.randint(1, MOST_SPOTS + 1, (count, heads, 1), generator=random)
    share = drawn() * (torch.arange(MOST_SPOTS) < number)
    rows, columns = (
        (-0.5 * ((place - centre[..., axis, None]) / deviation).square()).exp() for axis in range(2)
    )  # each (N, H, spots, side)
    found = torch.einsum("nhs,nhsr,nhsc->nhrc", share, rows, columns).flatten(2)
    return found / found.sum(2, keepdim=True).clamp_min(1e-12)
