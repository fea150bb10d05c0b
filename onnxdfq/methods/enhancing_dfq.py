"""EnhancingDFQ (Zhao et al., Enhancing Diversity for Data-free Quantization, CVPR 2025): its settings and generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, STEPS, WEIGHT
from onnxdfq.methods.gdfq import Gdfq
from onnxdfq.methods.method import FloatModel, Need, Run

if TYPE_CHECKING:
    from jaxtyping import Float32
    from torch import Tensor

    from onnxdfq.generators.fine_tuning import FineTuning
    from onnxdfq.generators.task import GeneratorLoss, GeneratorTask


@dataclass(frozen=True, kw_only=True)
class Edfq(Gdfq):
    """As GDFQ, with a generator whose labels are mixed by attention and whose details come from noise of several
    levels, and losses that keep its images unlike one another and the quantized network's features like the float ones.

    length: of embeddings. classifier_steps: of the classifiers that label embeddings come from, on images of a
    generator as GDFQ has it. label_embeddings: False draws them. features_mixer: False gives each image one label.
    flow_attention: False multiplies noise with the embedding. likeness: weight of SimLoss1; features: of SimLoss2; 0
    leaves one out. The others are GDFQ's, `latent`, `mixed` and `several` of its generator.
    Raises InputError.

    Ours, where the paper is silent: levels are the activations before an image shrinks, at most 4 (of a transformer, at
    equal distances); projections of the mixer start as the identity, and labels pass no gradient; planar flows; a
    mixture has one label of at least one half and two others; features are pooled for classifiers and for SimLoss1;
    SimLoss2 is relative to each level's energy, and clips are learned where scales are free. Its weight: ResNet-20 at
    w3a3 gave 90 % of 1,024 DGH images the float network's answer with 10, 88 % with 1.
    """

    name: ClassVar[str] = "edfq"
    summary: ClassVar[str] = "GDFQ with labels mixed by attention and noise of several levels, also for transformers"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLASSES})
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = Gdfq.efforts

    length: Annotated[int, BATCH] = 64
    classifier_steps: Annotated[int, STEPS] = 100
    label_embeddings: bool = True
    features_mixer: bool = True
    flow_attention: bool = True
    likeness: Annotated[float, WEIGHT] = 4.0
    features: Annotated[float, WEIGHT] = 10.0

    def _warmed_up(self, model: FloatModel, run: Run) -> GeneratorTask:
        import torch

        from onnxdfq.generators.attention import AttentionGenerator
        from onnxdfq.generators.memory import LabelMemory
        from onnxdfq.generators.preparing import seeded
        from onnxdfq.training.levels import feature_levels, pooled
        from onnxdfq.training.loop import step_generator

        base = self._prepared(model, run, levels=feature_levels(model.graph))
        seed, network = run.recipe.seed, base.network
        embeddings = self._embeddings(base, model, run)
        generator = seeded(
            seed,
            lambda: AttentionGenerator(
                network.planes,
                embeddings,
                levels=max(1, len(base.levels)),
                width=self.width,
                mixes=self.features_mixer,
                attends=self.flow_attention,
            ),
        )
        with torch.no_grad():
            seen = pooled(base.draw(base.batch_size(2), step_generator(seed, 0)).features[-1:])
        memory = LabelMemory(len(embeddings), seen[0].shape[1]) if seen and self.likeness else None
        task = base.with_generator(generator, memory)
        self._warm_up(task, model, run, "generator")
        return task

    def _embeddings(self, base: GeneratorTask, model: FloatModel, run: Run) -> Float32[Tensor, "k d"]:
        import torch

        from onnxdfq.generators.embeddings import label_embeddings
        from onnxdfq.training.loop import Loop

        seed, size = run.recipe.seed, base.batch_size(self.batch_size)
        if not (self.label_embeddings and base.levels):
            return torch.randn(base.labels, self.length, generator=torch.Generator().manual_seed(seed))
        self._warm_up(base, model, run, "first-generator")
        loop = Loop(steps=self.classifier_steps, batch_size=size)
        return label_embeddings(base, self.length, loop, seed=seed, progress=run.progress("classifying levels"))

    def _generator_loss(self) -> GeneratorLoss:
        return replace(super()._generator_loss(), likeness=self.likeness)

    def _fine_tuning(self) -> FineTuning:
        return replace(super()._fine_tuning(), features=self.features)
