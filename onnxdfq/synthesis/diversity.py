"""How much images differ from one another."""

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

PART = 64  # images at once
ALIKE = 0.95  # mean similarity of all images from which on a generator has but one picture


def similarity(pixels: Float32[NDArray[np.float32], "n ..."]) -> float:
    """Mean cosine of the angle between two images: 1 where all are alike up to their contrast, 0 where they are as
    unlike as noise.

    Args:
        pixels: At least two, of mean 0, as standardised pixels are.
    """
    vectors = torch.from_numpy(pixels).flatten(1)
    total, own = torch.zeros(vectors.shape[1], dtype=torch.float64), 0.0
    for part in torch.split(vectors, PART):  # a copy of all in double precision would be twice their size
        units = part.double() / part.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
        total += units.sum(0)
        own += float(units.square().sum())
    count = len(vectors)
    return (float(total.square().sum()) - own) / (count * (count - 1))


def similarity_by_label(
    pixels: Float32[NDArray[np.float32], "n ..."], labels: Float32[NDArray[np.float32], "n k"]
) -> float | None:
    """Mean over labels of the similarity of their images; None where no label has two.

    Args:
        pixels: As for `similarity`.
        labels: Shares; the greatest counts.

    Source: EnhancingDFQ, whose figure compares generators so.
    """
    greatest = labels.argmax(1)
    groups = [pixels[greatest == label] for label in np.unique(greatest)]
    found = [similarity(group) for group in groups if len(group) > 1]
    return float(np.mean(found)) if found else None
