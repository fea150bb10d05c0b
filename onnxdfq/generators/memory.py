"""What the images of each label looked like to the network so far."""

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

MOMENTUM = 0.9  # ours: the paper names none


class LabelMemory(nn.Module):
    """Moving averages of features by label, from which new images are to differ.

    Args:
        labels: How many there are.
        length: Of the features.

    Source: EnhancingDFQ, Eq. 10; here a mean over the batch, and features pooled over the image, so that its size does
    not grow with it. An image of several labels counts for the greatest.
    """

    features: Float32[Tensor, "k f"]
    known: Float32[Tensor, "k"]

    def __init__(self, labels: int, length: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(labels, length))
        self.register_buffer("known", torch.zeros(labels))

    def similarity(self, features: Float32[Tensor, "n f"], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, ""]:
        """Mean cosine with what is remembered of the images' labels; 0 where nothing is."""
        label = labels.argmax(1)
        cosines = functional.cosine_similarity(features, self.features[label], dim=1)
        return (cosines * self.known[label]).mean()

    @torch.no_grad()
    def remember(self, features: Float32[Tensor, "n f"], labels: Float32[Tensor, "n k"]) -> None:
        """Take a batch into the averages."""
        greatest = functional.one_hot(labels.argmax(1), len(self.known)).to(features)
        counts = greatest.sum(0)
        there = counts > 0
        means = (greatest.T @ features)[there] / counts[there, None]
        keep = MOMENTUM * self.known[there, None]
        self.features[there] = keep * self.features[there] + (1 - keep) * means
        self.known[there] = 1.0
