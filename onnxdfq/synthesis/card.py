"""What a set of images is worth, without labels: by each of several networks, and by itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.synthesis.diversity import similarity
from onnxdfq.synthesis.quality import CONFIDENT
from onnxdfq.synthesis.statistics import Aggregate
from onnxdfq.synthesis.view import View


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What one network says of images.

    name: of its file. bn_distance: see `ImageQuality`; None where it carries no BatchNormalization. confident: share of
    images to which it gives a class with more than 0.9. entropy: of its mean answer, as a share of the most that is
    possible: 1 where all classes come as often, 0 where all images are of one. Both None where it scores no classes.
    """

    name: str
    bn_distance: float | None
    confident: float | None
    entropy: float | None


@dataclass(frozen=True, kw_only=True)
class ImageCard:
    """What a set of images is worth.

    models: one for each network. confident_mean, confident_std: of those that score classes (MixMix, Table 2); None
    where none does. entropy: the mean. diversity: 1 less the mean similarity of two images (see `similarity`): about 1
    where they are as unlike as noise, 0 where they are all the same; None of one image.
    """

    images: int
    models: tuple[ModelCard, ...]
    confident_mean: float | None
    confident_std: float | None
    entropy: float | None
    diversity: float | None


def image_card(
    standardised: Float32[NDArray[np.float32], "n c h w"], views: Iterable[View], *, batch_size: int = 64
) -> ImageCard:
    """Run images through networks, one network after another.

    Args:
        standardised: Pixels of mean 0 and deviation 1.
        views: Each is looked at once, and may then be given up.
        batch_size: Images at once.
    """
    models = tuple(_by_model(standardised, view, batch_size) for view in views)
    confident = [model.confident for model in models if model.confident is not None]
    entropies = [model.entropy for model in models if model.entropy is not None]
    return ImageCard(
        images=len(standardised),
        models=models,
        confident_mean=fmean(confident) if confident else None,
        confident_std=pstdev(confident) if confident else None,
        entropy=fmean(entropies) if entropies else None,
        diversity=1 - similarity(standardised) if len(standardised) > 1 else None,
    )


@torch.no_grad()
def _by_model(standardised: NDArray[np.float32], view: View, batch_size: int) -> ModelCard:
    network = view.network
    parts = torch.split(torch.from_numpy(standardised), batch_size)
    statistics = Aggregate([len(part) for part in parts], len(network.targets.mean), network.device)
    answers = []
    for number, part in enumerate(parts):
        taps, scores = view(part.to(network.device))
        if taps:
            statistics.store(number, network.moments(taps))
        if scores is not None:
            answers.append(scores.softmax(1))
    distance = float(network.targets.distance(*statistics.total())) if network.targets.channels else None
    if not answers:
        return ModelCard(name=view.name, bn_distance=distance, confident=None, entropy=None)
    shares = torch.cat(answers)
    mean = shares.mean(0).double()
    entropy = float(-(mean * mean.clamp_min(1e-30).log()).sum() / np.log(len(mean))) if len(mean) > 1 else 0.0
    confident = float((shares.amax(1) > CONFIDENT).float().mean())
    return ModelCard(name=view.name, bn_distance=distance, confident=confident, entropy=entropy)
