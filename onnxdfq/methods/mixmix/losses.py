"""The losses of DeepInversion and MixMix: statistics, mixed labels, image priors, and their balance."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from onnxdfq.recipe.choices import StatisticsForm
from onnxdfq.synthesis.statistics import Targets

TV, L2 = 1e-3, 1e-5
"""Of the two priors against one another and, with weight 1, against the cross entropy. DeepInversion has 1e-4 on the
norm of a whole batch, whose share for an image falls with the root of their number; of its 84 images that is 1e-3."""


def statistics_loss(
    form: StatisticsForm, targets: Targets, moments: Float32[Tensor, "2 s"], first: float
) -> Float32[Tensor, ""]:
    """How far a batch's statistics are from the running ones; 0 where they are these.

    norm: sum over layers of the norms of the errors of mean and variance, in the network's units (DeepInversion, Eq. 4;
    MixMix, Eq. 2). relative: mean over layers of the same, root mean square over channels, with errors in units of
    each channel's deviation, so that networks of bytes and of standardised pixels count alike. kl: mean over layers
    and channels of the divergence of two Gaussians, the batch's from the running one (Knowledge Within, arXiv
    1912.01274).

    Args:
        form: Which of the three.
        targets: The running statistics, S channels of L layers.
        moments: Of the batch, centred at the running means.
        first: How much the first layer counts, of the others.
    """
    mean = moments[0]
    variance = moments[1] - mean.square()
    weights = [first] + [1.0] * (len(targets.channels) - 1)
    if form == "norm":
        parts = zip(targets.layers(mean), targets.layers(variance - targets.var), strict=True)
        layers = [_norm(one) + _norm(other) for one, other in parts]
        return torch.stack([weight * layer for weight, layer in zip(weights, layers, strict=True)]).sum()
    relative_mean = mean / targets.scale.sqrt()
    if form == "relative":
        errors = targets.layers(relative_mean), targets.layers((variance - targets.var) / targets.scale)
        layers = [(_norm(one) + _norm(other)) / len(one) ** 0.5 for one, other in zip(*errors, strict=True)]
    else:
        ratio = (variance.clamp_min(0) / targets.scale).clamp_min(1e-6)
        divergence = 0.5 * (ratio + relative_mean.square() - 1 - ratio.log())
        layers = [part.mean() for part in targets.layers(divergence)]
    return torch.stack([weight * layer for weight, layer in zip(weights, layers, strict=True)]).mean()


def label_loss(
    scores: Float32[Tensor, "n k"], labels: Int64[Tensor, "n"], partners: Int64[Tensor, "n"], share: float
) -> Float32[Tensor, ""]:
    """Mixed cross entropy (MixMix, Eq. 9): (1 - beta) CE to an image's label + beta CE to that of its partner.

    Args:
        scores: Before their softmax.
        labels: Of the images.
        partners: Place of the image that lies in each one's box.
        share: beta.
    """
    own = functional.cross_entropy(scores, labels)
    return own if share == 0 else (1 - share) * own + share * functional.cross_entropy(scores, labels[partners])


def prior_loss(images: Float32[Tensor, "n c h w"]) -> Float32[Tensor, ""]:
    """Total variation and size of images, mean over them (DeepInversion, Eq. 3).

    The variation is the sum of four norms, of the differences along rows, columns and both diagonals.
    """
    differences = (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1] - images[:, :, 1:],
        images[:, :, 1:, :-1] - images[:, :, :-1, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
    )
    variation = torch.stack([_norm(difference.flatten(1)) for difference in differences]).sum(0)
    return (TV * variation + L2 * _norm(images.flatten(1))).mean()


class Balance:
    """The weights of several losses: as they are given, or learned.

    L = sum of exp(-s) L_i + s, with s learned by Adam (uncertainty weighting, arXiv 1705.07115): without the second
    term plain descent would make all weights 0. A weight of 0 stays.

    Ours: MixMix says that its weights are learned, and not how.

    Args:
        weights: exp(-s) at the start.
        learned: Whether they change.
    """

    def __init__(self, weights: Sequence[float], *, learned: bool) -> None:
        self._first = torch.tensor(weights, dtype=torch.float64)
        self._negative = self._first.clamp_min(1e-30).log().neg()
        self._optimizer = torch.optim.Adam([self._negative]) if learned else None

    @property
    def weights(self) -> list[float]:
        """exp(-s), 0 where it was."""
        found: list[float] = torch.where(self._first > 0, torch.exp(-self._negative), self._first).tolist()
        return found

    def learn(self, losses: Sequence[float], rate: float) -> None:
        """One step of s. losses: L_i without their weights."""
        if self._optimizer is None:
            return
        slope = 1 - torch.exp(-self._negative) * torch.tensor(losses, dtype=torch.float64)
        self._negative.grad = torch.where(self._first > 0, slope, 0.0)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()


def _norm(errors: Float32[Tensor, "... c"]) -> Float32[Tensor, "..."]:
    """Along the last axis; at 0 the slope is 0."""
    found: Tensor = torch.linalg.vector_norm(errors, dim=-1)
    return found
