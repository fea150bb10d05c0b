"""Dead leaves: random shapes painted over each other, for any model that takes images; what is left without BN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxdfq.images.images import Images
from onnxdfq.methods.method import Synthesis
from onnxdfq.recipe.limits import at_least

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.images.normalization import Normalization
    from onnxdfq.progress import Progress


@dataclass(frozen=True, kw_only=True)
class DeadLeaves(Synthesis):
    """Images with the edges, areas and spectrum of photographs, from no data and no gradient (see
    `onnxdfq.synthesis.dead_leaves`), in the model's units; Gaussian numbers for an input that is no picture.

    Source: Lee, Mumford and Huang, IJCV 41, 2001; Baradad et al., arXiv 2106.05963.
    """

    name: ClassVar[str] = "dead-leaves"
    summary: ClassVar[str] = "random shapes over each other, with the statistics of photographs; any model, no search"
    priority: ClassVar[int] = 10

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
        """See `Synthesis.synthesize`; needs no BatchNormalization and no gradient."""
        from onnxdfq.model_file import main_input
        from onnxdfq.synthesis.hyperparameters import describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.start import starting_samples

        at_least("count", count, 1)
        scale = input_range(model, normalization)
        found = starting_samples(main_input(model), scale, count, seed=seed, progress=progress)
        return Images(pixels=found, method=self.name, seed=seed, provenance=describe(self, None, scale))
