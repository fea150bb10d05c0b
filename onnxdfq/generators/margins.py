"""Images between agreement and disagreement of both networks (AdaDFQ)."""

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.generators.labels import label_loss

DISAGREEMENT, AGREEMENT = 0.2, 0.1  # weights of the published 3-bit settings
LEAST, GREATEST = 0.1, 0.8  # normalised entropy of the difference of answers, in which images are to lie


def generator_margins(
    expected: Float[Tensor, "n k ..."], found: Float[Tensor, "n k ..."], labels: Float32[Tensor, "n k"]
) -> Float32[Tensor, ""]:
    """The loss of a generator: both networks differ on its images, neither hardly nor altogether.

    Args:
        expected: Scores of the float network.
        found: Of the quantized one; gradients pass both.
        labels: Shares.

    Source: AdaDFQ, Qian et al., CVPR 2023, Eq. 8 to 12, with the constants of its public code.
    """
    entropy = _entropies(expected - found) / math.log(expected.shape[1])
    margin = (LEAST - entropy).clamp_min(0) + (entropy - GREATEST).clamp_min(0)
    apart, together = label_loss(expected - found, labels), label_loss(expected + found, labels)
    return margin.mean() + DISAGREEMENT * apart + AGREEMENT * together


def student_margins(
    expected: Float[Tensor, "n k ..."], found: Float[Tensor, "n k ..."], temperature: float
) -> Float32[Tensor, ""]:
    """The loss of the quantized network, which makes the answers differ nowhere: their difference says nothing.

    Source: AdaDFQ, Eq. 13: entropy of its softmax at a temperature, negated; here less its greatest, so that 0 is best.
    """
    most = math.log(expected.shape[1])
    return temperature**2 * (most - _entropies((expected - found) / temperature).mean())


def _entropies(scores: Float[Tensor, "n k ..."]) -> Float32[Tensor, "n"]:
    logarithms = torch.log_softmax(scores.flatten(1).float(), 1)
    return -(logarithms.exp() * logarithms).sum(1)
