"""DGH: Data Generation for Hardware-friendly post-training quantization (arXiv 2410.22110): its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, RATE, SLICES, STEPS, WEIGHT, check_bounds
from onnxdfq.methods.method import FloatModel, Making, Need, Note, Run, Synthesis
from onnxdfq.recipe.choices import LOSS_FORMS, PRECISIONS, LossForm, Precision
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.images.images import Images


@dataclass(frozen=True, kw_only=True)
class Dgh(Synthesis):
    """Images whose statistics, all images together, are those that the model's BatchNormalizations remember.

    steps: visits to each batch. rate: first step size in standardised pixels; the straight-through clamp makes the
    large one of the public code work. stretching: lambda of Eq. (8), None for what was measured to suit the form.
    slack: delta of Eq. (7), as a share of what the images that the search starts from deviate by (paper form only).
    aggregate: False fits each batch by itself; image_prior: False leaves out flip, smoothing and crop (the paper's
    ablations, Table 4). slices: of a batch, each looked at by itself, so that as many workers share the
    work on it; to the same images but for rounding, and of one worker 4 slices take a third more time on a ResNet-20.
    Raises InputError.

    Differs from Algorithm 1 as the public code does: statistics are those of the forward that the gradient came from,
    not of a second one after the update, which would cost two thirds more time a step and save a quarter of the steps.
    Differs from both: the relative form of the losses (see losses.py), an optimiser state of half the images' size (see
    optimizer.py), and a start from dead leaves where both have Gaussian pixels (see start.py).
    """

    name: ClassVar[str] = "dgh"
    summary: ClassVar[str] = "images whose statistics, all together, are those of the model's BatchNormalizations"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM})
    priority: ClassVar[int] = 20
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {"standard": {"steps": 500}, "paper": {"steps": 1000}}

    steps: Annotated[int, STEPS] = 250
    batch_size: Annotated[int, BATCH] = 64
    rate: Annotated[float, RATE] = 16.0
    loss_form: LossForm = "relative"
    stretching: Annotated[float | None, WEIGHT] = None
    slack: Annotated[float, WEIGHT] = 0.1
    aggregate: bool = True
    image_prior: bool = True
    precision: Precision = "auto"
    slices: Annotated[int, SLICES] = 1

    def __post_init__(self) -> None:
        check_bounds(self)
        one_of("loss_form", self.loss_form, LOSS_FORMS, field="loss_form")
        one_of("precision", self.precision, PRECISIONS, field="precision")

    @property
    def has_independent_batches(self) -> bool:
        """Not where statistics are those of all images."""
        return False

    def for_run(self, model: FloatModel, making: Making, run: Run) -> Images:
        """See `Synthesis.for_run`; tells where workers have nothing to do."""
        if run.workers.size > self.slices:
            text = (
                f"{self.slices} of {run.workers.size} workers find work in a batch of dgh; with --set "
                f"dgh.slices={run.workers.size} all do, and rounding comes out otherwise."
            )
            run.tell(Note(text=text))
        return super().for_run(model, making, run)

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`."""
        from onnxdfq.methods.dgh.search import synthesize

        return synthesize(self, model, making)
