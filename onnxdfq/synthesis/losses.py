"""The two losses of DGH, in the form that the paper prints and in the form that its public code computes.

first, second: moments of the image set centred at the running means, each (S,), see statistics.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from onnxdfq.synthesis.statistics import Targets, spread


def statistics_loss_paper(targets: Targets, first: Tensor, second: Tensor) -> Tensor:
    """L_BNS, Eq. (4) of S004: sum over layers of squared L2 errors of means and of *variances* (Eq. 5b)."""
    variance = second - first.square()
    return first.square().sum() + (variance - targets.var).square().sum()


def statistics_loss_public(targets: Targets, first: Tensor, second: Tensor) -> Tensor:
    """The public code's L_BNS: mean over layers of the mean over channels, on standard deviations."""
    error = first.square() + (spread(first, second) - targets.std).square()
    return (targets.layer_mean * error).sum()


def image_prior(first: Tensor, second: Tensor) -> Tensor:
    """The image as one more layer with mean 0 and deviation 1 per channel, in standardised units: (C,), (C,) -> ().

    Summed over channels, not averaged: the public code's target has shape (1, C), so it divides by 1.
    """
    return (first.square() + (spread(first, second) - 1).square()).sum()


def output_ranges(outputs: Sequence[Tensor]) -> Tensor:
    """max - min of each output of each image, flattened: outputs (N, *) -> (len(outputs), N) float32."""
    flat = [output.flatten(1).float() if output.dim() > 1 else output.float()[:, None] for output in outputs]
    return torch.stack([output.amax(1) - output.amin(1) for output in flat])


def stretching_loss_public(outputs: Sequence[Tensor]) -> Tensor:
    """Mean over images of -(max - min), summed over outputs (`NEGATIVE_MIN_MAX_DIFF`)."""
    return -output_ranges(outputs).mean(1).sum()


def stretching_loss_paper(outputs: Sequence[Tensor], mean_error: Tensor, variance_error: Tensor, delta: float) -> Tensor:
    """L_ODSL, Eq. (7) of S004: mean over images of -(max - min)^2 + [e_mu - delta]_+ + [e_sigma - delta]_+.

    mean_error, variance_error: (N,), squared L2 distance of each image's own statistics at the last BN from the
    running ones.
    """
    stretch = -output_ranges(outputs).square().mean(1).sum()
    return stretch + (mean_error - delta).clamp_min(0).mean() + (variance_error - delta).clamp_min(0).mean()
