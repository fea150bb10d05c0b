"""What a generator is asked for: one label an image, or several in shares."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How labels are drawn.

    count: K, of all labels. mixed: how often, 0 to 1, a whole batch asks for several labels an image. several: how many
    then, by shares that are the softmax of normal numbers.

    Source of mixtures: Qimera, Choi et al., arXiv 2111.02625, §4.2: images on the borders of classes.
    """

    count: int
    mixed: float = 0.0
    several: int = 2

    def draw(self, count: int, random: torch.Generator) -> Float32[Tensor, "n k"]:
        """Shares of labels of so many images, each row of sum 1."""
        single = torch.randint(self.count, (count,), generator=random)
        if float(torch.rand((), generator=random)) >= self.mixed:
            return functional.one_hot(single, self.count).float()
        some = min(self.several, self.count)
        places = torch.rand(count, self.count, generator=random).argsort(1)[:, :some]
        shares = torch.randn(count, some, generator=random).softmax(1)
        return torch.zeros(count, self.count).scatter_(1, places, shares)


def mixtures(
    count: int, labels: int, random: torch.Generator, *, others: int = 2, least: float = 0.5
) -> Float32[Tensor, "n k"]:
    """Shares of labels, one of which has at least `least` of each image, and a few others the rest."""
    places = torch.rand(count, labels, generator=random).argsort(1)[:, : others + 1]
    first = least + (1 - least) * torch.rand(count, 1, generator=random)
    rest = (1 - first) * torch.randn(count, places.shape[1] - 1, generator=random).softmax(1)
    return torch.zeros(count, labels).scatter_(1, places, torch.cat([first, rest], 1))


def label_loss(
    scores: Float[Tensor, "n k ..."], labels: Float32[Tensor, "n k"], *, hardness: float = 0.0
) -> Float32[Tensor, ""]:
    """Cross entropy with shares of labels, mean over images.

    hardness: An image counts with the power of this of how far its labels are from certain: 0 counts all alike, and the
    more, the more the hard ones.

    Source of hardness: HAST, Li et al., arXiv 2303.13826, Eq. 7.
    """
    each = functional.cross_entropy(scores.flatten(1).float(), labels, reduction="none")
    if hardness:
        certain = (scores.flatten(1).float().softmax(1) * labels).sum(1)
        each = each * (1 - certain).detach() ** hardness
    return each.mean()


def certainty_loss(
    scores: Float[Tensor, "n k ..."], labels: Float32[Tensor, "n k"], certainty: Float32[Tensor, "n"]
) -> Float32[Tensor, ""]:
    """Squared difference of an image's certainty of its labels from what is wanted of it, mean over images.

    Source: IntraQ, Zhong et al., CVPR 2022, Eq. 9: images of a class that are not all alike sure.
    """
    certain = (scores.flatten(1).float().softmax(1) * labels).sum(1)
    return (certain - certainty).square().mean()
