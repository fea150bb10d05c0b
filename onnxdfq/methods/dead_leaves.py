"""Dead leaves: random shapes painted over each other, then stretched by the model: what is left without BN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxdfq.images.images import Images
from onnxdfq.limits import BATCH, RATE, STEPS, Bounds, check_bounds
from onnxdfq.methods.method import Making, Synthesis

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.methods.batches import Batch
    from onnxdfq.progress import Steps


@dataclass(frozen=True, kw_only=True)
class DeadLeaves(Synthesis):
    """Images with the edges, areas and spectrum of photographs, to which the model answers as to things it knows;
    Gaussian numbers for an input that is no picture.

    steps: by which each batch is changed so that the model's outputs range wider; 0 leaves it as it is drawn. rate: of
    Adam, in standardised pixels. Raises InputError.

    Source: Lee, Mumford and Huang, IJCV 41, 2001; Baradad et al., arXiv 2106.05963. The steps are ours.
    """

    name: ClassVar[str] = "dead-leaves"
    summary: ClassVar[str] = "random shapes with the statistics of photographs; any model, in seconds"
    priority: ClassVar[int] = 10

    steps: Annotated[int, Bounds(least=0, most=STEPS.most)] = 10
    batch_size: Annotated[int, BATCH] = 32
    rate: Annotated[float, RATE] = 0.03

    def __post_init__(self) -> None:
        check_bounds(self)

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`; needs no BatchNormalization."""
        import torch

        from onnxdfq.methods.batches import batches, made, origin
        from onnxdfq.model_file import batch_of, main_input
        from onnxdfq.synthesis.hyperparameters import delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.network import batch_sizes
        from onnxdfq.synthesis.start import starting_images
        from onnxdfq.synthesis.stretched import Stretching

        scale, spec = input_range(model, making.normalization), main_input(model)
        low, high = scale.limits(torch.device("cpu"))
        stretching = Stretching(model, scale, making.device) if self.steps and spec.image is not None else None

        def make(batch: Batch, tell: Steps) -> torch.Tensor:
            shape = (batch.size, *spec.planes)
            start = starting_images(spec, shape, seed=making.seed, first=batch.first, generator=batch.random)
            images = start.clamp(low, high)
            if stretching:
                images = stretching(images, steps=self.steps, rate=self.rate, generator=batch.random, tell=tell)
            else:
                tell("")
            return scale.to_model(images)

        several = batches(making, batch_sizes(making.count, self.batch_size, batch_of(model)))
        pixels = made(making, several, spec.planes, make, self.steps if stretching else 1)
        found = delivered(spec, pixels.numpy())
        return Images(
            pixels=found,
            method=self.name,
            seed=making.seed,
            provenance=describe(self, None, scale) | origin(making, several),
        )
