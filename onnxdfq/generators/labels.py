"""What a generator is asked for: one label an image, or several in shares."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
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


def label_loss(scores: Float32[Tensor, "n k ..."], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, ""]:
    """Cross entropy with shares of labels."""
    found: Tensor = functional.cross_entropy(scores.flatten(1).float(), labels)
    return found
