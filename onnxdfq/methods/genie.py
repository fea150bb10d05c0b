"""GENIE (arXiv 2212.04780): each batch of images by a generator of its own, against a network that swings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, RATE, STEPS, Bounds, check_bounds
from onnxdfq.methods.method import Making, Need, Synthesis
from onnxdfq.recipe.choices import PRECISIONS, Precision
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from onnxdfq.images.images import Images
    from onnxdfq.methods.batches import Batch
    from onnxdfq.progress import Steps


@dataclass(frozen=True, kw_only=True)
class Genie(Synthesis):
    """A generator and its latent vectors learn together until the images have the statistics that the model's
    BatchNormalizations remember; then both are thrown away, and the next batch has new ones.

    steps: for each batch, one batch after another. latent: length of the vectors. width: of the generator, channels of
    its first convolution. generator_rate, latent_rate: of Adam. relative: whether errors are in units of each channel's
    own deviation (ours, for any network) or in the network's, as published. swing: whether what convolutions with a
    stride read is moved at random.
    Raises InputError.

    Differs from the public code: schedules are shares of the steps, of which there are fewer but for `paper`; the
    generator is the one of all methods here, whose first convolutions are wider.
    """

    name: ClassVar[str] = "genie"
    summary: ClassVar[str] = "a generator for each batch of images, thrown away when their statistics are the model's"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM})
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "standard": {"steps": 500},
        "paper": {"steps": 4000, "batch_size": 128, "width": 128, "relative": False},
    }

    steps: Annotated[int, STEPS] = 200
    batch_size: Annotated[int, BATCH] = 64
    latent: Annotated[int, BATCH] = 256
    width: Annotated[int, Bounds(least=2, most=4096)] = 64
    generator_rate: Annotated[float, RATE] = 0.01
    latent_rate: Annotated[float, RATE] = 0.1
    relative: bool = True
    swing: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)
        one_of("precision", self.precision, PRECISIONS, field="precision")

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`."""
        from onnxdfq.generators.per_batch import Distilled
        from onnxdfq.images.images import Images
        from onnxdfq.methods.batches import batches, made, origin
        from onnxdfq.synthesis.hyperparameters import delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.network import TappedNetwork
        from onnxdfq.synthesis.swing import Swing

        swing = Swing(model)
        network = TappedNetwork(
            swing.model,
            method=self.name,
            device=making.device,
            precision=self.precision,
            replacements=swing.replacements,
        )
        scale = input_range(model, making.normalization)

        def make(batch: Batch, tell: Steps) -> torch.Tensor:
            found = Distilled(
                network,
                scale,
                batch.size,
                batch.random,
                steps=self.steps,
                latent=self.latent,
                width=self.width,
                generator_rate=self.generator_rate,
                latent_rate=self.latent_rate,
                relative=self.relative,
            )
            for _ in range(self.steps):
                if self.swing:
                    swing.draw(batch.random)
                tell(f"loss {found.step():.4f}")
            return found.images()

        several = batches(making, network.batch_sizes(making.count, self.batch_size))
        pixels = made(making, several, network.planes, make, self.steps)
        return Images(
            pixels=delivered(network.spec, pixels.numpy()),
            method=self.name,
            seed=making.seed,
            provenance=describe(self, network, scale) | origin(making, several),
        )
