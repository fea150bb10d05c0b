"""The generator of EnhancingDFQ: labels are mixed by attention, and noise enters level by level."""

import math

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from onnxdfq.generators.labels import Labels, mixtures
from onnxdfq.generators.trunk import trunk

FLOWS = 4  # planar maps behind one another, for each level
HEADS = 4


class LabelMixer(nn.Module):
    """Attention of a mixture of labels over all labels: what it reads is the embedding, and how strongly it reads each
    label is what the image is to be.

    Its projections start as the identity: then each label attends mostly to itself, and a mixture to its parts.

    Args:
        length: d, of embeddings.

    Source: EnhancingDFQ, Eq. 6.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.eye(length)) for _ in range(3))

    def forward(
        self, embeddings: Float32[Tensor, "k d"], shares: Float32[Tensor, "n k"]
    ) -> tuple[Float32[Tensor, "n d"], Float32[Tensor, "n k"]]:
        """Embeddings of images, and their labels. No gradient passes these: they are what is asked for."""
        query = shares @ embeddings @ self.query
        attention = (query @ (embeddings @ self.key).T / math.sqrt(query.shape[1])).softmax(1)
        return attention @ (embeddings @ self.value), attention.detach()


class PlanarFlow(nn.Module):
    """Invertible maps of noise to another distribution: z + u tanh(w z + b), one behind the other.

    Args:
        length: Of z.

    Source: Rezende and Mohamed, arXiv 1505.05770, Eq. 10 and appendix A.1, which EnhancingDFQ cites for its Eq. 7.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.direction, self.normal = (nn.Parameter(torch.randn(FLOWS, length) / length**0.5) for _ in range(2))
        self.offset = nn.Parameter(torch.zeros(FLOWS))

    def forward(self, z: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
        """As many vectors."""
        for u, w, b in zip(self.direction, self.normal, self.offset, strict=True):
            along = w @ u
            invertible = u + (nn.functional.softplus(along) - 1 - along) * w / w.square().sum().clamp_min(1e-12)
            z = z + torch.outer(torch.tanh(z @ w + b), invertible)
        return z


class LevelAttention(nn.Module):
    """Noise of one level enters an embedding by attention between the two: a pre-norm transformer block, and the sum of
    both tokens. Of the embedding's token alone noise hardly changes the image.

    Args:
        length: Of both.

    Source: EnhancingDFQ, Eq. 8.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        heads = math.gcd(length, HEADS)
        self.block = nn.TransformerEncoderLayer(
            length, heads, 2 * length, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
        )
        self.flow = PlanarFlow(length)

    def forward(self, embedding: Float32[Tensor, "n d"], z: Float32[Tensor, "n d"]) -> Float32[Tensor, "n d"]:
        """As many embeddings."""
        found: Tensor = self.block(torch.stack([embedding, self.flow(z)], 1)).sum(1)
        return found


class AttentionGenerator(nn.Module):
    """Images of mixed labels, whose details come from noise of several levels.

    Args:
        planes: (C, H, W) of the images.
        embeddings: (K, d), of labels; they train.
        levels: J.
        width: As for `trunk`.
        mixes: Whether labels are mixed by attention; otherwise each image has one.
        attends: Whether noise enters level by level; otherwise it is multiplied with the embedding, as in GDFQ.

    Source: EnhancingDFQ, §3.3, whose ablations the last two are.
    """

    def __init__(
        self,
        planes: tuple[int, int, int],
        embeddings: Float32[Tensor, "k d"],
        *,
        levels: int,
        width: int = 128,
        mixes: bool = True,
        attends: bool = True,
    ) -> None:
        super().__init__()
        labels, length = embeddings.shape
        self.embeddings = nn.Parameter(embeddings.clone())
        self.mixer = LabelMixer(length) if mixes else None
        self.levels = nn.ModuleList(LevelAttention(length) for _ in range(levels if attends else 0))
        self.trunk = trunk(planes, length, labels, width=width)

    def forward(self, count: int, random: torch.Generator) -> tuple[Float32[Tensor, "n c h w"], Float32[Tensor, "n k"]]:
        """So many standardised images, and the shares of labels that they were asked for."""
        labels, length = self.embeddings.shape
        device = self.embeddings.device
        if self.mixer is None:
            asked = Labels(count=labels).draw(count, random).to(device)
            vector = asked @ self.embeddings
        else:
            vector, asked = self.mixer(self.embeddings, mixtures(count, labels, random).to(device))
        noise = torch.randn(count, length, generator=random).to(device)
        for level in self.levels:
            vector = level(vector, noise)
        return self.trunk(vector if self.levels else vector * noise, asked), asked
