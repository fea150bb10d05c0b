"""DAFL (Chen et al., Data-Free Learning of Student Networks, ICCV 2019, arXiv 1904.01186) with the losses of MixMix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import SHARE, WEIGHT
from onnxdfq.methods.gdfq import Gdfq
from onnxdfq.methods.method import FloatModel, Run

if TYPE_CHECKING:
    from onnxdfq.generators.task import GeneratorLoss, GeneratorTask


@dataclass(frozen=True, kw_only=True)
class Dafl(Gdfq):
    """A generator whose images the network is sure of, of each class as many, and that stir its last features; and, as
    MixMix adds, of labels that were asked for, mixed, and with the statistics of its BatchNormalizations.

    one_hot, entropy, activation: weights of DAFL's three losses. label, statistics: of MixMix's two. mixing: how often
    a batch is mixed. 0 leaves each out: DAFL alone is label=0, statistics=0, mixing=0. The others are GDFQ's, `steps`
    and those of the quantized network only where one is trained.
    Raises InputError.

    Ours: the generator is GDFQ's, which takes labels, and its activations are not pooled.
    """

    name: ClassVar[str] = "dafl"
    summary: ClassVar[str] = "a generator for distillation: images that the teacher is sure of, mixed"
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **Gdfq.efforts,
        "paper": {"steps": 80_000, "warm_up": 800, "batch_size": 1024, "latent": 1000, "width": 128},
    }

    one_hot: Annotated[float, WEIGHT] = 0.05
    entropy: Annotated[float, WEIGHT] = 5.0
    activation: Annotated[float, WEIGHT] = 0.01
    mixing: Annotated[float, SHARE] = 0.5

    def _warmed_up(self, model: FloatModel, run: Run) -> GeneratorTask:
        from onnxdfq.training.levels import feature_levels

        task = self._prepared(model, run, levels=feature_levels(model.graph)[-1:])
        self._warm_up(task, model, run, "generator")
        return task

    def _generator_loss(self) -> GeneratorLoss:
        return replace(
            super()._generator_loss(),
            one_hot=self.one_hot,
            entropy=self.entropy,
            activation=self.activation,
            mixing=self.mixing,
        )
