"""How one network looks at images that several look at: in its own units, size and order of classes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from onnxdfq.synthesis.input_range import InputRange
from onnxdfq.synthesis.network import TappedNetwork


def resized(images: Float32[Tensor, "n c h w"], size: Sequence[int]) -> Float32[Tensor, "n c {size[0]} {size[1]}"]:
    """Linear interpolation, smoothed where it makes smaller, so that each pixel counts; gradients pass."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(images, size=list(size), mode="bilinear", antialias=True, align_corners=False)


class View:
    """A network, and the way from standardised pixels of any size to what it takes.

    Args:
        name: What messages call it.
        network: Float, tapped.
        scale: From standardised pixels to its units.
        scores: Which output of the network scores classes; None where none does.
        order: Place k holds the network's number of class k; None where numbers are the same.
        digest: Of the network's file.
    """

    def __init__(
        self,
        name: str,
        network: TappedNetwork,
        scale: InputRange,
        *,
        scores: int | None,
        order: Sequence[int] | None = None,
        digest: str = "",
    ) -> None:
        self.name, self.network, self.scale, self.digest = name, network, scale, digest
        self.order = order
        self._scores = scores

    def __call__(
        self, standardised: Float32[Tensor, "n c _ _"]
    ) -> tuple[list[Float[Tensor, "m _ ..."]], Float32[Tensor, "n k"] | None]:
        """Run images; gradients pass.

        Args:
            standardised: Pixels of mean 0 and deviation 1, of any size.

        Returns:
            Taps of the BatchNormalizations, and the scores of classes in the common order, None where there are none.
            Where the network runs at one batch size only the last batch is filled up, and taps hold more rows.
        """
        taps, scores = self._run(standardised)
        return taps, scores if scores is None or self.order is None else scores[:, list(self.order)]

    def _run(self, standardised: Tensor) -> tuple[list[Tensor], Tensor | None]:
        network, count = self.network, len(standardised)
        images = self.scale.to_model(resized(standardised, network.planes[1:]))
        sizes = network.batch_sizes(count, count)
        if sum(sizes) > count:
            images = images[torch.arange(sum(sizes), device=images.device) % count]
        runs = [network.forward(network.given(part)) for part in torch.split(images, sizes)]
        taps = [
            torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*(taps for taps, _ in runs), strict=True)
        ]
        if self._scores is None:
            return taps, None
        return taps, torch.cat([outputs[self._scores] for _, outputs in runs])[:count].flatten(1).float()

    @torch.no_grad()
    def class_count(self) -> int | None:
        """How many classes it scores; None where it scores none."""
        _, scores = self._run(torch.zeros(1, *self.network.planes, device=self.network.device))
        return None if scores is None else scores.shape[1]
