"""Noise: no method at all, the baseline that every other has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from onnxdfq.images.images import Images
from onnxdfq.limits import BATCH, check_bounds
from onnxdfq.methods.method import Making, Synthesis

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, kw_only=True)
class Noise(Synthesis):
    """Independent Gaussian pixels with the mean and deviation of natural images, clamped to the model's input range.

    batch_size: how many images one generator draws; a part of what the seed means, nothing else. Raises InputError.
    """

    name: ClassVar[str] = "noise"
    summary: ClassVar[str] = "Gaussian pixels, which cost accuracy; to compare with"

    batch_size: Annotated[int, BATCH] = 64

    def __post_init__(self) -> None:
        check_bounds(self)

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`; needs no BatchNormalization and no gradient, and is too quick to be kept."""
        import torch

        from onnxdfq.methods.batches import batches, origin
        from onnxdfq.model_file import main_input
        from onnxdfq.synthesis.hyperparameters import delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.network import batch_sizes

        scale = input_range(model, making.normalization)
        low, high = scale.limits(torch.device("cpu"))
        spec = main_input(model)
        shape = spec.planes
        several = batches(making, batch_sizes(making.count, self.batch_size))
        pixels = torch.empty(sum(batch.size for batch in several), *shape)
        for batch, rows in zip(several, torch.split(pixels, self.batch_size), strict=True):
            standardised = torch.randn(self.batch_size, *shape, generator=batch.random)[: len(rows)]
            rows.copy_(scale.to_model(standardised.clamp(low, high)))
        if making.progress is not None:
            making.progress(1, 1, "")
        found = delivered(spec, pixels.numpy())
        return Images(
            pixels=found,
            method="noise",
            seed=making.seed,
            provenance=describe(self, None, scale) | origin(making, several),
        )
