"""The generator of GDFQ: noise and a label to an image that the float network gives that label."""

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from onnxdfq.generators.labels import Labels
from onnxdfq.generators.trunk import LabelNorm, PlainNorm, trunk

FEW_LABELS = 100  # up to which a label is an embedding that the noise is multiplied with, as in the public code


class ConditionalGenerator(nn.Module):
    """Images by label. Few labels have embeddings, many have normalizations of their own.

    Args:
        planes: (C, H, W) of the images.
        labels: What it is asked for.
        latent: Length of the noise.
        width: As for `trunk`.

    Source: GDFQ, Xu et al., arXiv 2003.03603, §4.1 and its public code; with mixed labels Qimera, Choi et al., arXiv
    2111.02625, whose superposed embeddings are the same sum.
    """

    def __init__(self, planes: tuple[int, int, int], labels: Labels, *, latent: int = 100, width: int = 128) -> None:
        super().__init__()
        self.labels = labels
        few = labels.count <= FEW_LABELS
        self.embedding = nn.Parameter(torch.randn(labels.count, latent)) if few else None
        self._latent = latent
        self.trunk = trunk(planes, latent, labels.count, width=width, norm=PlainNorm if few else LabelNorm)

    def forward(self, count: int, random: torch.Generator) -> tuple[Float32[Tensor, "n c h w"], Float32[Tensor, "n k"]]:
        """So many standardised images, and the shares of labels that they were asked for."""
        device = next(self.parameters()).device
        labels = self.labels.draw(count, random).to(device)
        noise = torch.randn(count, self._latent, generator=random).to(device)
        vector = noise if self.embedding is None else noise * (labels @ self.embedding)
        return self.trunk(vector, labels), labels
