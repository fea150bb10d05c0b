"""Attention that images are drawn to: spots, and the distance from them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Psaq
from onnxdfq.synthesis.attention_prior import AttentionPrior, attention_to_patches, spots

from ..graphs import vit

HALF = Normalization(mean=(0.5,), std=(0.25,))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_spots_are_shares_of_the_picture_and_gather_somewhere() -> None:
    found = spots((50, 3, 64), seeded())
    assert found.shape == (50, 3, 64) and bool((found >= 0).all())
    torch.testing.assert_close(found.sum(2), torch.ones(50, 3))
    assert float(found.amax(2).min()) > 1.5 / 64
    places = found.flatten(0, 1).argmax(1)
    assert len(set((places // 8).tolist())) == len(set((places % 8).tolist())) == 8
    assert torch.equal(found, spots((50, 3, 64), seeded()))


@pytest.mark.parametrize(("tokens", "leading"), [(16, 0), (17, 1)])
def test_attention_of_the_first_token_or_else_of_all(tokens: int, leading: int) -> None:
    weights = torch.randn(2, 3, tokens, tokens, generator=seeded()).softmax(3)
    expected = weights[:, :, 0, 1:] if leading else weights.mean(2)
    for laid in (weights, weights.flatten(0, 1)):
        found = attention_to_patches(laid, 2)
        assert found is not None
        torch.testing.assert_close(found, expected)


def test_attention_over_anything_else_counts_nothing() -> None:
    assert attention_to_patches(torch.zeros(2, 3, 1, 16), 2) is None
    assert attention_to_patches(torch.zeros(3, 16, 16), 2) is None
    assert float(AttentionPrior(seeded()).loss([torch.zeros(2, 3, 1, 16)], 2)) == 0


def test_only_later_attentions_count_and_the_last_ones_most() -> None:
    wanted = spots((2, 3, 16), seeded())
    there = wanted[:, :, None].expand(2, 3, 16, 16)
    off = there + 1  # a squared error of 1 in each of three heads

    def loss(*weights: Tensor) -> float:
        return float(AttentionPrior(seeded()).loss(weights, 2))

    # spots are drawn in order of depth, so that the first that counts has those from above
    np.testing.assert_allclose(loss(there), 0, atol=1e-12)
    np.testing.assert_allclose(loss(off), 3.0, rtol=1e-5)
    np.testing.assert_allclose(loss(off, off, there, there) - loss(there, there, there, there), 1.5, rtol=0.05)
    assert loss(off, there, there, there) == loss(there, there, there, there)


def test_images_come_to_be_looked_at_as_was_asked_for() -> None:
    losses: list[float] = []
    method = Psaq(steps=40, batch_size=8, stretching=0, smoothness=0, classes=0, attention=1e6)
    method.synthesize(
        vit(), count=8, seed=0, normalization=HALF, progress=lambda _, __, note, /: losses.append(float(note[5:]))
    )
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.8 * losses[0]
