"""From a vector to an image, or another sample: the layers that the generators of all papers here have in common."""

from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.2  # of LeakyReLU
INNER_EPSILON = 0.8  # of the public code, which has it from ACGAN's: what the generator was tuned with
LEAST_SIZE = 4  # pixels, of a side: images grow from a quarter of their size


class LabelNorm(nn.Module):
    """BatchNormalization whose scale and shift each label has of its own (categorical conditional BN)."""

    def __init__(self, channels: int, labels: int, epsilon: float) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(labels, channels)), nn.Parameter(torch.zeros(labels, channels))
        self._epsilon = epsilon

    def forward(self, x: Float32[Tensor, "n c h w"], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, "n c h w"]:
        """labels: shares that sum to 1."""
        scale, shift = (labels @ table for table in (self.scale, self.shift))
        normal: Tensor = functional.batch_norm(x, None, None, training=True, eps=self._epsilon)
        return normal * scale[:, :, None, None] + shift[:, :, None, None]


class PlainNorm(nn.Module):
    """BatchNormalization by the batch, whatever the labels."""

    def __init__(self, channels: int, labels: int, epsilon: float) -> None:
        super().__init__()
        self._norm = nn.BatchNorm2d(channels, eps=epsilon, track_running_stats=False)

    def forward(self, x: Float32[Tensor, "n c h w"], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, "n c h w"]:
        """labels: not looked at."""
        found: Tensor = self._norm(x)
        return found


def trunk(
    planes: tuple[int, int, int],
    inputs: int,
    labels: int,
    *,
    width: int = 128,
    norm: Callable[[int, int, float], nn.Module] = PlainNorm,
) -> nn.Module:
    """A module: a vector and shares of labels → standardised samples (each channel of a batch of mean 0, deviation 1).

    Args:
        planes: (C, H, W) of samples. Fewer than LEAST_SIZE pixels in a row or column are no picture: they come from
            layers that are fully connected.
        inputs: Length of the vector.
        labels: How many there are.
        width: Channels of the first convolution, or of each layer.
        norm: LabelNorm or PlainNorm.
    """
    kind = ImageTrunk if min(planes[1:]) >= LEAST_SIZE else VectorTrunk
    return kind(planes, inputs, labels, width=width, norm=norm)


class VectorTrunk(nn.Module):
    """Two fully connected layers, for samples that are no pictures. Arguments: see `trunk`."""

    def __init__(
        self,
        planes: tuple[int, int, int],
        inputs: int,
        labels: int,
        *,
        width: int,
        norm: Callable[[int, int, float], nn.Module],
    ) -> None:
        super().__init__()
        self._planes = planes
        self.layers = nn.ModuleList([nn.Linear(inputs, width), nn.Linear(width, width)])
        self.norms = nn.ModuleList([norm(width, labels, 1e-5), norm(width, labels, 1e-5)])
        self.last = nn.Linear(width, prod(planes))

    def forward(self, vector: Float32[Tensor, "n d"], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, "n c h w"]:
        """labels: shares that sum to 1."""
        x = vector
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = functional.leaky_relu(norm(layer(x)[:, :, None, None], labels)[:, :, 0, 0], SLOPE)
        found: Tensor = functional.batch_norm(self.last(x).view(-1, *self._planes), None, None, training=True)
        return found


class ImageTrunk(nn.Module):
    """Convolutions behind two steps of enlarging. Arguments: see `trunk`.

    Source: GDFQ, arXiv 2003.03603, whose public code has it from ACGAN; there it makes sizes that are multiples of 4.
    """

    def __init__(
        self,
        planes: tuple[int, int, int],
        inputs: int,
        labels: int,
        *,
        width: int,
        norm: Callable[[int, int, float], nn.Module],
    ) -> None:
        super().__init__()
        channels, *size = planes
        self._sizes = [tuple(-(-side // divisor) for side in size) for divisor in (4, 2, 1)]
        height, wide = self._sizes[0]
        self._width = width
        self.first = nn.Linear(inputs, width * height * wide)
        self.norms = nn.ModuleList([norm(width, labels, 1e-5), norm(width, labels, INNER_EPSILON)])
        self.norms.append(norm(width // 2, labels, INNER_EPSILON))
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width // 2, 3, padding=1)
        self.image = nn.Conv2d(width // 2, channels, 3, padding=1)

    def forward(self, vector: Float32[Tensor, "n d"], labels: Float32[Tensor, "n k"]) -> Float32[Tensor, "n c h w"]:
        """labels: shares that sum to 1."""
        first, middle, last = self.norms
        x = self.first(vector).view(len(vector), self._width, *self._sizes[0])
        x = x.contiguous(memory_format=torch.channels_last)
        x = functional.interpolate(first(x, labels), size=self._sizes[1])
        x = functional.leaky_relu(middle(self.middle(x), labels), SLOPE)
        x = functional.interpolate(x, size=self._sizes[2])
        x = functional.leaky_relu(last(self.last(x), labels), SLOPE)
        x = torch.tanh(self.image(x))
        found: Tensor = functional.batch_norm(x, None, None, training=True)
        return found
