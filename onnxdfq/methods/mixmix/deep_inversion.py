"""DeepInversion (arXiv 1912.08795): images of given labels, found through a network; its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, RATE, SHARE, STEPS, WEIGHT, check_bounds
from onnxdfq.methods.method import FloatModel, Making, Need, Note, Run, Synthesis
from onnxdfq.recipe.choices import PRECISIONS, STATISTICS_FORMS, Precision, StatisticsForm
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.generators.zoo import Zoo
    from onnxdfq.images.images import Images


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How many models look at a batch, whether images are mixed, and whether the weights of losses are learned."""

    models: int = 1
    data: bool = False
    balance: bool = False


@dataclass(frozen=True, kw_only=True)
class DeepInversion(Synthesis):
    """Images that a network gives their labels, with the statistics that its BatchNormalizations remember and the
    smoothness of pictures. With --zoo each batch is made by one model of it.

    steps: for each batch, one batch after another. rate: of Adam, in standardised pixels. label, statistics, prior:
    weights of the three losses. form: of the errors of statistics: relative to each channel's deviation (ours, for
    networks of any input units), norm as published, or kl as in Knowledge Within; they want weights of their own, norm
    0.05 for large images and 10 for small ones. first: how much the first
    BatchNormalization counts, of the others. coarse: share of the steps at half the resolution. Raises InputError.

    The weight of the relative form: of 1, 10, 30 and 100 that at which most images made by a ResNet-20 get their labels
    of a ResNet-8, too (32 images, 60 steps: 28, 66, 78 and 62 %; BN distance .29, .025, .008, .006).

    Differs from the paper: fewer steps (`--effort paper` has as many), a start from dead leaves, errors of statistics
    without a unit, and of each batch the images of the least loss, as the paper's code has it, of the last stage alone.
    """

    name: ClassVar[str] = "deepinversion"
    summary: ClassVar[str] = "images of given labels with the BatchNormalizations' statistics"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM, Need.CLASSES})
    takes_zoo: ClassVar[bool] = True
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {"standard": {"steps": 1000}, "paper": {"steps": 3000}}

    steps: Annotated[int, STEPS] = 300
    batch_size: Annotated[int, BATCH] = 64
    rate: Annotated[float, RATE] = 0.25
    label: Annotated[float, WEIGHT] = 1.0
    statistics: Annotated[float, WEIGHT] = 30.0
    prior: Annotated[float, WEIGHT] = 1.0
    form: StatisticsForm = "relative"
    first: Annotated[float, WEIGHT] = 10.0
    coarse: Annotated[float, SHARE] = 0.4
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        check_bounds(self)
        one_of("form", self.form, STATISTICS_FORMS, field="form")
        one_of("precision", self.precision, PRECISIONS, field="precision")

    def mixing(self) -> Mixing:
        """What is mixed: nothing."""
        return Mixing()

    def for_run(self, model: FloatModel, making: Making, run: Run) -> Images:
        """Images by the zoo of the run; by the model itself where there is none."""
        return self._search(model.graph, self._zoo(model, run), making, lambda text: run.tell(Note(text=text)))

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`; by the model itself."""
        from onnxdfq.generators.zoo import zoo_of_one

        zoo = zoo_of_one(model, making.normalization, name="the model", device=making.device, precision=self.precision)
        return self._search(model, zoo, making)

    def _zoo(self, model: FloatModel, run: Run) -> Zoo:
        from onnxdfq.generators.zoo import zoo_of, zoo_of_one

        if run.zoo:
            return zoo_of(run.zoo, held=self.mixing().models, device=run.device, precision=self.precision)
        return zoo_of_one(
            model.graph,
            model.normalization,
            name=model.source.name,
            digest=model.digest,
            device=run.device,
            precision=self.precision,
        )

    def _search(
        self, model: ir.Model, zoo: Zoo, making: Making, tell: Callable[[str], None] = lambda _: None
    ) -> Images:
        from onnxdfq.methods.mixmix.search import synthesize
        from onnxdfq.model_file import main_input
        from onnxdfq.synthesis.input_range import ASSUMED, input_range
        from onnxdfq.synthesis.network import no_batch_norm

        spec = main_input(model)
        found = zoo.checked(spec)
        folded = [one.name for one in found if one.folded]
        if Need.BATCH_NORM in self.needs and len(folded) == len(found):
            raise no_batch_norm(model, self.name)
        for name in folded:
            tell(f"{name} carries no BatchNormalization: it takes part by its answers alone.")
        for one in found if len(found) > 1 else ():
            if one.scale.source.startswith("estimated") or one.scale.source == ASSUMED:
                tell(f"Nothing tells how the inputs of {one.name} were normalised: its range is {one.scale.source}.")
        if zoo.held < self.mixing().models:
            several = "1 model, which makes" if len(zoo) == 1 else f"{len(zoo)} models, which all make"
            tell(f"The zoo has {several} each batch, and not {self.mixing().models}.")
        return synthesize(self, zoo, found, spec, input_range(model, making.normalization), making)
