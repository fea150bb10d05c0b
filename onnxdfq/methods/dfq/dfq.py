"""DFQ: data-free quantization through weight equalization and bias correction (arXiv 1906.04721)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdfq.methods.method import FloatModel, Method, Need, Run
from onnxdfq.recipe.bits import FLOAT_BITS
from onnxdfq.recipe.recipe import Recipe

if TYPE_CHECKING:
    from onnxdfq.calibration.calibration import Calibration
    from onnxdfq.calibration.observation import Observations
    from onnxdfq.images.source import ImageSource
    from passes.target.target import Target


@dataclass(frozen=True, kw_only=True)
class Dfq(Method):
    """Channels equalized across layers; ranges and bias correction from BatchNormalization alone, in seconds.

    It needs no image: each channel in front of an activation function is taken to be normally distributed, with the
    mean and the standard deviation that its BatchNormalization sets (arXiv 1906.04721, sections 4.2 and 5.1.1).
    """

    name: ClassVar[str] = "dfq"
    summary: ClassVar[str] = "no images: equalized channels, ranges from BatchNormalization alone; seconds"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM})
    equalizes: ClassVar[bool] = True

    def makes_images(self, recipe: Recipe) -> bool:
        """Never: ranges come from BatchNormalization."""
        return False

    def rewrite(self, model: FloatModel, images: ImageSource | None, run: Run) -> FloatModel:
        """The model with the distribution of its image input.

        Raises:
            NoBatchNorm: The model has no BatchNormalization.
        """
        from onnxdfq.methods.dfq.ranges import with_input_spread

        return model if images is not None else with_input_spread(model, self.name)

    def observe(
        self,
        model: FloatModel,
        images: ImageSource | None,
        targets: Sequence[Target],
        calibration: Calibration,
        run: Run,
    ) -> Observations:
        """Ranges and means from BatchNormalization, or from the images that the user gave.

        Raises:
            InputError: A range does not follow from BatchNormalization; names the value.
        """
        from onnxdfq.methods.dfq.ranges import observations_from_batch_norm

        if images is not None:
            return super().observe(model, images, targets, calibration, run)
        return observations_from_batch_norm(
            model.graph, {**model.moments, **model.inputs}, targets, activations=run.bits.activation < FLOAT_BITS
        )
