"""Noise: no method at all, the baseline that every other has to beat, and what is left for models without BN."""

from dataclasses import dataclass

import onnx_ir as ir
import torch

from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.dataset import Normalization
from onnxdfq.images.images import Images
from onnxdfq.progress import Progress
from onnxdfq.synthesis.hyperparameters import at_least, batch_generators, describe
from onnxdfq.synthesis.input_range import input_range


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Independent Gaussian pixels with the mean and deviation of natural images, clamped to the model's input range.

    batch_size: how many images one generator draws; a part of what the seed means, nothing else. Raises InputError.
    """

    batch_size: int = 64

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)

    def synthesize(
        self,
        model: ir.Model,
        *,
        count: int,
        seed: int,
        normalization: Normalization | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Images:
        """`count` images; needs no BatchNormalization and no gradient. Raises ShapeError, DataError."""
        at_least("count", count, 1)
        scale = input_range(model, normalization)
        low, high = scale.limits(torch.device("cpu"))
        shape = Feeds(model).image_shape
        pixels = torch.empty(count, *shape)
        generators = batch_generators(seed, -(-count // self.batch_size))
        for batch, generator in zip(torch.split(pixels, self.batch_size), generators, strict=True):
            standardised = torch.randn(self.batch_size, *shape, generator=generator)[: len(batch)]
            batch.copy_(scale.to_model(standardised.clamp(low, high)))
        if progress is not None:
            progress(1, 1, "")
        return Images(pixels=pixels.numpy(), method="noise", seed=seed, provenance=describe(self, None, scale))
