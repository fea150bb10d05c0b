"""GDFQ: Generative low-bitwidth Data Free Quantization (arXiv 2003.03603): its settings, and its two trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from onnxdfq.images.images import Images
from onnxdfq.limits import BATCH, RATE, SHARE, STEPS, WEIGHT, Bounds, check_bounds
from onnxdfq.methods.effort import COST_OF_NUMBER, limit_of
from onnxdfq.methods.method import FloatModel, Measurement, Method, Need, Note, Run
from onnxdfq.model_file import main_input
from passes.graph.work import work_per_sample

if TYPE_CHECKING:
    from torch import nn

    from onnxdfq.generators.fine_tuning import FineTuning
    from onnxdfq.generators.source import GeneratedImages
    from onnxdfq.generators.task import GeneratorLoss, GeneratorTask
    from onnxdfq.images.source import ImageSource
    from onnxdfq.recipe.recipe import Recipe
    from onnxdfq.work.checkpoint import Checkpoint
    from passes.quantize.plan import QuantPlan
    from passes.target.target import Target

LEAST_STEPS = 50
STUDENT_VISITS = 1.3  # what a visit to the quantized network costs, of one to the float one


@dataclass(frozen=True, kw_only=True)
class Gdfq(Method):
    """A generator learns images that the float network gives their labels, with the statistics that its
    BatchNormalizations remember; then the quantized network learns on its images, while the generator learns on.

    steps: of both together. warm_up: steps of the generator before. batch_size: images of a step. latent, width: of the
    generator, length of its noise and channels of its first convolution. generator_rate, rate: of Adam, for the
    generator and for the quantized network's weights in steps of their grids. label, statistics: weights of the two
    losses of the generator, 0 leaves one out. relative: whether errors of statistics are in units of each channel's
    deviation (ours, for any network) or as in Eq. (7). student_label, answers: weights of the quantized network's two.
    temperature: of its distillation. separate: the generator stays as its warm-up left it. stop_at: share of images
    given their labels at which a batch no longer trains the generator. mixed, several: how often images are asked for
    several labels, and how many (Qimera). hardness: how much more images count that the network is not sure of
    (HAST). certainty: in place of the cross entropy, how sure it is to be of an image at least (IntraQ). margins: both
    networks train on the difference of their answers (AdaDFQ).
    Raises InputError.

    Differs from the paper, whose 400 epochs of 200 batches of 200 images take days here (`--effort paper`, with its
    sizes and weights): fewer and smaller batches, half the width and three times the rate of the generator, Adam in
    steps of the grid for the quantized network, thresholds by squared error on the images of the warmed-up generator,
    and the state that is best on held-back images, where the paper reports the best of all epochs on the test set.
    """

    name: ClassVar[str] = "gdfq"
    summary: ClassVar[str] = "a generator of labelled images, and a quantized network that learns on them"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM, Need.CLASSES})
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "standard": {"steps": 2000, "warm_up": 500},
        "paper": {
            "steps": 80_000,
            "warm_up": 800,
            "batch_size": 200,
            "width": 128,
            "generator_rate": 1e-3,
            "statistics": 0.1,
            "relative": False,
        },
    }

    steps: Annotated[int, STEPS] = 500
    warm_up: Annotated[int, STEPS] = 300
    batch_size: Annotated[int, BATCH] = 64
    latent: Annotated[int, BATCH] = 100
    width: Annotated[int, Bounds(least=2, most=4096)] = 64
    generator_rate: Annotated[float, RATE] = 3e-3
    rate: Annotated[float, RATE] = 1e-3
    label: Annotated[float, WEIGHT] = 1.0
    statistics: Annotated[float, WEIGHT] = 1.0
    relative: bool = True
    student_label: Annotated[float, WEIGHT] = 1.0
    answers: Annotated[float, WEIGHT] = 1.0
    temperature: Annotated[float, RATE] = 20.0
    separate: bool = False
    stop_at: Annotated[float | None, SHARE] = None
    mixed: Annotated[float, SHARE] = 0.0
    several: Annotated[int, BATCH] = 2
    hardness: Annotated[float, Bounds(least=0, most=10)] = 0.0
    certainty: Annotated[float | None, SHARE] = None
    margins: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def images(self, model: FloatModel, run: Run) -> GeneratedImages:
        """Images of the generator after its warm-up."""
        from onnxdfq.generators.source import GeneratedImages

        return GeneratedImages(
            lambda: self._warmed_up(model, run),
            lambda task, count: self._images(task, count, run),
            rate=0.0 if self.separate else self.generator_rate,
        )

    def refine(
        self, model: FloatModel, plan: QuantPlan, target: Target, images: ImageSource | None, run: Run
    ) -> QuantPlan:
        """What fine-tuning on the generator's images makes of the plan; the plan itself on images of the user's own."""
        from onnxdfq.generators.source import GeneratedImages

        if not isinstance(images, GeneratedImages):
            return plan
        found, training = self._fine_tuning().train(
            model.graph,
            plan,
            target,
            images.task,
            reference=model.teacher,
            learn_scales=run.recipe.scales == "free",
            seed=run.recipe.seed,
            progress=run.progress("training"),
            checkpoint=self._checkpoint(f"{self.name}.{target.name}", run, model.digest, plan.fingerprint),
        )
        run.tell(Measurement(values={"loss_curve": training.rows()}, target=target.name))
        if training.stopped is not None:
            run.tell(Note(text=training.stopped))
        return found

    def generator(self, planes: tuple[int, int, int], labels: int) -> nn.Module:
        """The network that makes images (C, H, W) of so many labels."""
        from onnxdfq.generators.conditional import ConditionalGenerator
        from onnxdfq.generators.labels import Labels

        asked = Labels(count=labels, mixed=self.mixed, several=self.several)
        return ConditionalGenerator(planes, asked, latent=self.latent, width=self.width)

    def fitted(self, model: FloatModel, recipe: Recipe) -> tuple[Self, int]:
        """With as many steps of both trainings as the effort allows; their proportion stays."""
        method, count = super().fitted(model, recipe)
        if recipe.steps is not None:
            return method, count
        share = min(1.0, limit_of(recipe.effort, recipe.minutes) / self._cost(model))
        own = recipe.settings.get(self.name, {})
        fewer = {
            name: max(int(share * getattr(self, name)), min(LEAST_STEPS, getattr(self, name)))
            for name in ("steps", "warm_up")
            if name not in own
        }
        return replace(method, **fewer), count

    def _cost(self, model: FloatModel) -> float:
        """Multiplications of both trainings."""
        work = work_per_sample(model.graph.graph)
        network = work.macs + COST_OF_NUMBER * work.numbers
        _, height, width = main_input(model.graph).planes
        generator = height * width * (self.width**2 * 27 / 4 + COST_OF_NUMBER * 2.4 * self.width)
        alone = network + generator
        return self.batch_size * (self.warm_up * alone + self.steps * (alone + STUDENT_VISITS * network))

    def _warmed_up(self, model: FloatModel, run: Run) -> GeneratorTask:
        task = self._prepared(model, run)
        self._warm_up(task, model, run, "generator")
        return task

    def _prepared(self, model: FloatModel, run: Run, *, levels: tuple[str, ...] = ()) -> GeneratorTask:
        from onnxdfq.generators.preparing import prepared_task

        return prepared_task(
            model.graph,
            self.generator,
            self._generator_loss(),
            method=self.name,
            seed=run.recipe.seed,
            normalization=model.normalization,
            device=run.device,
            levels=levels,
            statistics=Need.BATCH_NORM in self.needs,
        )

    def _generator_loss(self) -> GeneratorLoss:
        from onnxdfq.generators.task import GeneratorLoss

        return GeneratorLoss(
            label=self.label,
            statistics=self.statistics,
            relative=self.relative,
            stop_at=self.stop_at,
            hardness=self.hardness,
            certainty=self.certainty,
        )

    def _warm_up(self, task: GeneratorTask, model: FloatModel, run: Run, what: str) -> None:
        """Train a generator alone, in place. what: names the stage."""
        from onnxdfq.training.loop import Loop

        training = task.warm_up(
            Loop(steps=self.warm_up, batch_size=task.batch_size(self.batch_size), warm_up=0.1),
            self.generator_rate,
            seed=run.recipe.seed,
            progress=run.progress(f"warming up the {what}"),
            checkpoint=self._checkpoint(f"{self.name}.{what}", run, model.digest),
        )
        if training.stopped is not None:
            run.tell(Note(text=training.stopped))

    def _checkpoint(self, name: str, run: Run, *parts: str) -> Checkpoint | None:
        return run.checkpoint(name, *parts, run.recipe.to_toml(), repr(self))

    def _images(self, task: GeneratorTask, count: int, run: Run) -> Images:
        from onnxdfq.synthesis.diversity import ALIKE, similarity, similarity_by_label
        from onnxdfq.synthesis.hyperparameters import delivered, describe

        pixels, labels = task.images(count, task.batch_size(self.batch_size), run.recipe.seed)
        standardised = task.scale.standardised(pixels)
        alike = similarity(standardised) if count > 1 else 0.0
        run.tell(Measurement(values={"similarity_by_label": similarity_by_label(standardised, labels)}))
        if alike > ALIKE:
            run.tell(
                Note(
                    text=f"The generator's images are all alike (similarity {alike:.2f}, 1 is the same picture): it "
                    f"has collapsed. Give it more steps (--set {self.name}.warm_up={2 * self.warm_up}), or take "
                    "--method dgh."
                )
            )
        return Images(
            pixels=delivered(task.network.spec, pixels),
            method=self.name,
            seed=run.recipe.seed,
            provenance=describe(self, task.network, task.scale),
        )

    def _fine_tuning(self) -> FineTuning:
        from onnxdfq.generators.fine_tuning import FineTuning
        from onnxdfq.training.loop import Loop
        from onnxdfq.training.rates import Rates

        return FineTuning(
            loop=Loop(steps=self.steps, batch_size=self.batch_size, warm_up=0.1),
            generator_rate=0.0 if self.separate else self.generator_rate,
            rates=Rates(weight=self.rate),
            temperature=self.temperature,
            label=self.student_label,
            answers=self.answers,
            margins=self.margins,
        )
