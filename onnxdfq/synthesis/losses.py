"""The two losses of DGH (arXiv 2410.22110, Eq. 8): statistics of the whole image set, stretching of each output.

Each has three forms. paper: as printed (Eq. 4 and 7). public: as the authors' public code computes them. relative: the
public form on errors relative to each channel's own deviation, and on the logarithm of the output's range. It has no
unit, so that one weight serves every model; with inputs of 0..255, where the first variances are in the thousands, one
layer drowns all else in the other two.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from onnxdfq.recipe.choices import LossForm
from onnxdfq.synthesis.statistics import Targets, spread

# An image to whose class a classifier gives more than this is stretched no further: it would lift the outputs to where
# no image of the world does, and their threshold with them (measured at 4 bits: by a factor of two, which costs points
# of accuracy).
CONFIDENCE_LIMIT = 0.99
# lambda of Eq. (8). relative: of 0, 1e-3, 3e-3, 1e-2, 3e-2 the largest that costs less than 5 % of the BN distance on
# ResNet-20 (128 images, 60 steps: .0054, .0055, .0057, .0067, .0116, while the confident share rises from .45 to 1).
STRETCHING: dict[LossForm, float] = {"relative": 3e-3, "public": 1e-4, "paper": 1e-3}


def statistics_loss(
    form: LossForm, targets: Targets, moments: Float32[Tensor, "2 s"], pixels: Float32[Tensor, "2 c"]
) -> Float32[Tensor, ""]:
    """L_BNS of the image set: a scalar, 0 where its statistics are those of the network.

    paper: sum over layers of squared L2 errors of means and *variances*. The others: mean over layers of the mean over
    channels, on deviations, with the standardised pixels as one more layer.

    Args:
        form: Which of the three.
        targets: The running statistics, S channels in all.
        moments: First and second moments, centred (see statistics.py).
        pixels: The same of the standardised pixels.

    Source: DGH, arXiv 2410.22110, Eq. 4.
    """
    first, second = moments[0], moments[1]
    if form == "paper":
        return torch.sum(first.square() + (second - first.square() - targets.var).square())
    layers = targets.distance(first, second) if form == "relative" else absolute_distance(targets, first, second)
    count = len(targets.channels)
    return (count * layers + image_prior(pixels[0], pixels[1])) / (count + 1)


def absolute_distance(
    targets: Targets, first: Float32[Tensor, "s"], second: Float32[Tensor, "s"]
) -> Float32[Tensor, ""]:
    """Mean over layers of the mean over channels of squared errors of means and deviations, in the network's units."""
    error = first.square() + (spread(first, second) - targets.std).square()
    return (targets.layer_mean * error).sum()


def image_prior(first: Float32[Tensor, "c"], second: Float32[Tensor, "c"]) -> Float32[Tensor, ""]:
    """The error of the image taken as a layer of mean 0 and deviation 1, by its moments.

    Summed over channels, not averaged: the public code's target has shape (1, C), so it divides by 1.
    """
    return torch.sum(first.square() + (spread(first, second) - 1).square())


def stretching_loss(
    form: LossForm, outputs: Sequence[Float[Tensor, "n ..."]], slack: Float32[Tensor, "2 n"]
) -> Float32[Tensor, ""]:
    """L_ODSL of a batch: a scalar, mean over images, summed over outputs; lower where outputs range wider.

    Args:
        form: Which of the three.
        outputs: Of any shape.
        slack: [e - delta]_+ of Eq. (7), e the squared distance of an image's own mean and variance at the last
            BN from the running ones; only the paper's form reads it.

    Source: DGH, arXiv 2410.22110, Eq. 7.
    """
    ranges = output_ranges(outputs)
    if form == "paper":
        return slack.sum(0).mean() - ranges.square().mean(1).sum()
    if form == "public":
        return -ranges.mean(1).sum()
    logarithms = ranges.clamp_min(1e-6).log()
    return -torch.where(_confident(outputs), logarithms.detach(), logarithms).mean(1).sum()


@torch.no_grad()
def _confident(outputs: Sequence[Float[Tensor, "n ..."]]) -> Bool[Tensor, "outputs n"]:
    """Whether an output, if it is a classifier's, gives its class more than the limit."""
    tops = [top_probability(output) for output in outputs]
    return torch.stack(
        [
            torch.zeros(len(output), dtype=torch.bool, device=output.device) if top is None else top > CONFIDENCE_LIMIT
            for output, top in zip(outputs, tops, strict=True)
        ]
    )


def top_probability(output: Float[Tensor, "n ..."]) -> Float32[Tensor, "n"] | None:
    """The largest class probability (N,) of logits or probabilities (N, K, 1, ...), None for any other output."""
    rows = _class_rows(output)
    if rows is None:
        return None
    return (rows if _is_normalised(rows) else rows.softmax(1)).amax(1)


def class_logits(output: Float[Tensor, "n ..."]) -> Float32[Tensor, "n k"] | None:
    """Logits of classes, of logits or probabilities (N, K, 1, ...); None for any other output."""
    rows = _class_rows(output)
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log() if rows is not None and _is_normalised(rows) else rows


def _class_rows(output: Float[Tensor, "n ..."]) -> Float32[Tensor, "n k"] | None:
    rows = output.flatten(1).float()
    return None if output.dim() < 2 or rows.shape[1] != output.shape[1] or rows.shape[1] < 2 else rows


def _is_normalised(rows: Float32[Tensor, "n k"]) -> bool:
    return bool((rows >= 0).all() and torch.allclose(rows.sum(1), torch.ones_like(rows[:, 0]), atol=1e-3))


def output_ranges(outputs: Sequence[Float[Tensor, "n ..."]]) -> Float32[Tensor, "outputs n"]:
    """max - min over each image's output, flattened."""
    flat = [output.flatten(1).float() for output in outputs]
    return torch.stack([output.amax(1) - output.amin(1) for output in flat])
