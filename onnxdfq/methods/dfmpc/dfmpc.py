"""DF-MPC: data-free quantization via mixed-precision compensation without fine-tuning (arXiv 2307.00498)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

from onnxdfq.errors import InputError
from onnxdfq.methods.dgh.dgh import Dgh
from onnxdfq.methods.method import FloatModel, Method, Need, Note, Run
from onnxdfq.recipe.bits import FLOAT_BITS, Bits
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.recipe import Recipe

if TYPE_CHECKING:
    from onnxdfq.calibration.calibration import Calibration
    from onnxdfq.calibration.observation import Observations
    from onnxdfq.images.source import ImageSource
    from passes.dfmpc.noise_probe import Covariance
    from passes.moments.moments import Moments
    from passes.target.target import Target

Form = Literal["best", "paper"]


@dataclass(frozen=True, kw_only=True)
class Dfmpc(Method):
    """Low-bit weights in closed form: of each pair of layers the second pays for what the first one's few bits lose.

    form: "paper" for its very equations, "best" for what measured best (neighbouring taps and channels taken into
    account by a probe of noise; every BatchNormalization recalibrated).

    Needs no images unless activations are quantized or weights are tuned afterwards; then DGH makes them.
    """

    name: ClassVar[str] = "dfmpc"
    summary: ClassVar[str] = "no images: ternary or low-bit weights, compensated in closed form (--bits w2/6)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TWO_WIDTHS})
    priority: ClassVar[int] = 30
    default_tuning: ClassVar[str | None] = "none"  # it has repaired its weights

    form: Form = "best"

    def __post_init__(self) -> None:
        one_of("form", self.form, get_args(Form), field="form")

    def check(self, recipe: Recipe, targets: Sequence[Target]) -> None:
        """Raises InputError for bits of one width, options that change weights, and targets without free scales."""
        if Bits.parse(recipe.bits).low is None:
            raise InputError(
                f"--method {self.name} does not take --bits {recipe.bits}: it takes low and high bits (w2/6, w3/6, "
                "w2/6a8).",
                field="bits",
            )
        for target in targets:
            if target.power_of_two or not target.per_channel_weights:
                raise InputError(
                    f"{self.name} gives each output channel a scale of its own, no power of two; the target "
                    f"{target.name} does not take that. Choose another --target.",
                    field="target",
                )
        wanted = {
            "budget": recipe.budget is not None,
            "equalize": recipe.equalize,
            "split_channels": recipe.split_channels > 0,
        }
        for option, given in wanted.items():
            if given:
                flag = f"--{option.replace('_', '-')}"
                raise InputError(
                    f"{self.name} decides the weights and their bits; leave {flag} out, or choose another --method.",
                    field=option,
                )

    def makes_images(self, recipe: Recipe) -> bool:
        """Whether activations are quantized, or weights tuned."""
        return Bits.parse(recipe.bits).activation < FLOAT_BITS or recipe.tuning not in (None, "none")

    def images(self, model: FloatModel, run: Run) -> ImageSource | None:
        """DGH's, by the effort of the recipe, where images are needed."""
        from onnxdfq.methods import configured

        if not self.makes_images(run.recipe):
            return None
        return configured(Dgh, run.recipe).fitted(model, run.recipe)[0].images(model, run)

    def fitted(self, model: FloatModel, recipe: Recipe) -> tuple[Self, int]:
        """As many images as DGH makes."""
        from onnxdfq.methods import configured

        return self, configured(Dgh, recipe).fitted(model, recipe)[1]

    def rewrite(self, model: FloatModel, images: ImageSource | None, run: Run) -> FloatModel:
        """Weights on their grids, BatchNormalizations behind them recalibrated; the teacher is the network before.

        Raises:
            NoBatchNorm: the model has no BatchNormalization and no image is there to stand in for it.
            InputError: no pair of layers can be compensated.
        """
        from passes.dfmpc.compensate import Compensation, plan_compensation
        from passes.dfmpc.plan import CompensateWeights, quantized_weights

        moments, covariances = self._statistics(model, images, run)
        paper, bits = self.form == "paper", run.bits
        assert bits.low is not None
        settings = (Compensation.paper if paper else Compensation)(low_bits=bits.low, high_bits=bits.weight)
        try:
            plan = plan_compensation(model.graph, settings, moments=moments, covariances=covariances)
        except ValueError as error:
            raise InputError(str(error)) from error
        for note in plan.notes:
            run.tell(Note(text=note))
        teacher = None if images is None else model.graph.clone()  # without images nobody learns from it
        CompensateWeights(plan)(model.graph)
        return replace(model, teacher=teacher, settled=partial(quantized_weights, plan=plan))

    def _statistics(
        self, model: FloatModel, images: ImageSource | None, run: Run
    ) -> tuple[Mapping[str, Moments], Mapping[str, Covariance] | None]:
        """Moments of what layers read, where images of the user's own tell them; covariances, but for the paper."""
        from onnxdfq.methods.dfmpc.probing import channel_moments, layer_inputs_of_images, noise_covariances
        from onnxdfq.synthesis.network import no_batch_norm
        from passes.dfmpc.noise_probe import input_covariances
        from passes.graph.batch_norm import read_batch_norms

        paper = self.form == "paper"
        if run.own_images and images is not None:
            values = layer_inputs_of_images(model.graph, model.source, images.fixed(run.image_count).samples)
            return channel_moments(values), None if paper else input_covariances(model.graph, values)
        if images is None and not read_batch_norms(model.graph):
            raise no_batch_norm(model.graph, self.name)
        return {}, None if paper else noise_covariances(model.graph, model.source, seed=run.recipe.seed)

    def observe(
        self,
        model: FloatModel,
        images: ImageSource | None,
        targets: Sequence[Target],
        calibration: Calibration,
        run: Run,
    ) -> Observations:
        """By images, where there are some; without, all that is written is settled, and nothing is looked at."""
        from onnxdfq.calibration.observation import Observations

        if images is None:
            return Observations(histograms={}, means={})
        return super().observe(model, images, targets, calibration, run)
