"""ZeroQ (arXiv 2001.00281): each image by itself matches the running statistics. A baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, RATE, STEPS, check_bounds
from onnxdfq.methods.method import Making, Need, Synthesis
from onnxdfq.recipe.choices import PRECISIONS, Precision
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from onnxdfq.images.images import Images
    from onnxdfq.methods.batches import Batch
    from onnxdfq.progress import Steps
    from onnxdfq.synthesis.input_range import InputRange
    from onnxdfq.synthesis.network import TappedNetwork

PATIENCE, DECAY, LEAST_RATE = 100, 0.1, 1e-4


@dataclass(frozen=True, kw_only=True)
class ZeroQ(Synthesis):
    """Images each of which by itself has the statistics that the model's BatchNormalizations remember. A baseline.

    steps: for each batch, one batch after another. rate: of Adam, in standardised pixels. Raises InputError.

    As the public code: no augmentation, no clamp, no loss on the output, plateau schedule (factor 0.1, patience 100).
    Differs from it: the variance is the biased one, which exists for a layer of one pixel too; and the start is dead
    leaves, not the nearly grey images of the public code, which divides by a variance where it means a deviation. BN
    distance on ResNet-20, 128 images, 200 steps: from grey .0095, from Gaussian pixels .0055, from leaves .0045; on
    MobileNetV1 no difference.
    """

    name: ClassVar[str] = "zeroq"
    summary: ClassVar[str] = "images that each by itself match the BatchNormalizations' statistics; to compare with"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM})
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {"fast": {"steps": 200}}

    steps: Annotated[int, STEPS] = 500
    batch_size: Annotated[int, BATCH] = 32
    rate: Annotated[float, RATE] = 0.5
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)
        one_of("precision", self.precision, PRECISIONS, field="precision")

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`."""
        from onnxdfq.images.images import Images
        from onnxdfq.methods.batches import batches, made, origin
        from onnxdfq.synthesis.hyperparameters import delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.network import TappedNetwork
        from onnxdfq.synthesis.start import starting_images

        network = TappedNetwork(model, method="zeroq", device=making.device, precision=self.precision)
        scale = input_range(model, making.normalization)

        def make(batch: Batch, tell: Steps) -> Tensor:
            shape = (batch.size, *network.planes)
            start = starting_images(network.spec, shape, seed=making.seed, first=batch.first, generator=batch.random)
            return self._searched(network, scale, start, tell)

        several = batches(making, network.batch_sizes(making.count, self.batch_size))
        pixels = made(making, several, network.planes, make, self.steps)
        return Images(
            pixels=delivered(network.spec, pixels.numpy()),
            method="zeroq",
            seed=making.seed,
            provenance=describe(self, network, scale) | origin(making, several),
        )

    def _searched(self, network: TappedNetwork, scale: InputRange, start: Tensor, tell: Steps) -> Tensor:
        """One batch (N, C, H, W) in the model's units."""
        import torch

        images = start.to(network.device).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=self.rate)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=DECAY, patience=PATIENCE, min_lr=LEAST_RATE
        )
        for _ in range(self.steps):
            loss = _loss(network, scale, images)
            (images.grad,) = torch.autograd.grad(loss, images)
            optimizer.step()
            schedule.step(float(loss.detach()))
            tell(f"loss {float(loss.detach()):.4f}")
        return scale.to_model(images.detach())


def _loss(network: TappedNetwork, scale: InputRange, images: Tensor) -> Tensor:
    """Sum over BN inputs, and the image as one more layer of mean 0 and deviation 1, of the squared L2 distance of each
    image's mean and deviation to the running ones; mean over images (N, C, H, W)."""
    import torch

    from onnxdfq.synthesis.statistics import image_moments, spread

    taps, _ = network.forward(network.given(scale.to_model(images)))
    nought = torch.zeros(images.shape[1], device=images.device)
    pairs = [network.image_moments(taps, layer) for layer in range(len(taps))] + [image_moments(images, nought)]
    total = images.new_zeros(())
    for (first, second), std in zip(pairs, [*network.targets.layers(network.targets.std), nought + 1], strict=True):
        total = total + first.square().sum() + (spread(first, second) - std).square().sum()
    return total / len(images)
