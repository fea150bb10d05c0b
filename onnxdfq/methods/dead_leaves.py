"""Dead leaves: random shapes painted over each other, then stretched by the model: what is left without BN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxdfq.images.images import Images
from onnxdfq.limits import BATCH, RATE, STEPS, Bounds, check_bounds
from onnxdfq.methods.method import Making, Synthesis

if TYPE_CHECKING:
    import onnx_ir as ir


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

        from onnxdfq.model_file import batch_of, main_input
        from onnxdfq.progress import Steps
        from onnxdfq.synthesis.hyperparameters import batch_generators, delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.start import starting_images
        from onnxdfq.synthesis.stretched import Stretching
        from onnxdfq.work.checkpoint import Parts

        scale, spec, fixed = input_range(model, making.normalization), main_input(model), batch_of(model)
        low, high = scale.limits(torch.device("cpu"))
        stretching = Stretching(model, scale, making.device) if self.steps and spec.image is not None else None
        size = fixed or self.batch_size
        pixels = torch.empty(making.count, *spec.planes)
        generators = batch_generators(making.seed, -(-making.count // size))
        whole = self.steps if stretching else 1
        parts, tell = Parts(making.checkpoint), Steps(making.progress, len(generators) * whole)

        def made(shape: tuple[int, ...], first: int, generator: torch.Generator) -> torch.Tensor:
            images = starting_images(spec, shape, seed=making.seed, first=first, generator=generator).clamp(low, high)
            if stretching:
                return stretching(images, steps=self.steps, rate=self.rate, generator=generator, tell=tell)
            tell("")
            return images

        for number, (batch, generator) in enumerate(zip(torch.split(pixels, size), generators, strict=True)):
            # A model of one batch size needs full batches.
            shape = (fixed or len(batch), *batch.shape[1:])
            images = parts(number, partial(made, shape, number * size, generator))
            tell.reach((number + 1) * whole)
            batch.copy_(scale.to_model(images)[: len(batch)])
        found = delivered(spec, pixels.numpy())
        return Images(pixels=found, method=self.name, seed=making.seed, provenance=describe(self, None, scale))
