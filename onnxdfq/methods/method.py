"""What a method is: `Method`, what it is given (`FloatModel`, `Run`), and what it needs of a model (`Need`).

A method is one frozen dataclass, whose fields are its settings, in a file of its own; the entry point `NAME =
"module:Class"` in the group `onnxdfq.methods` makes it known, in this package or in another. Nothing here and nothing
at the top of such a file loads torch, so that a wrong setting is refused before anything heavy is imported.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from onnxdfq.errors import InputError
from onnxdfq.images.images import Images
from onnxdfq.images.source import FixedImages, ImageSource
from onnxdfq.limits import IMAGES
from onnxdfq.methods.effort import affordable, check_images, images_in_memory, limit_of
from onnxdfq.recipe.bits import Bits
from onnxdfq.recipe.recipe import Recipe
from onnxdfq.recipe.shard import WHOLE, Shard
from onnxdfq.recipe.zoo import Member
from onnxdfq.workers import ALONE, Workers
from passes.graph.work import Work, work_per_sample

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from onnxdfq.calibration.calibration import Calibration
    from onnxdfq.calibration.observation import Observations
    from onnxdfq.images.normalization import Normalization
    from onnxdfq.progress import Progress
    from onnxdfq.work.checkpoint import Checkpoint
    from onnxdfq.work.folder import WorkFolder
    from passes.dfmpc.plan import QuantizedWeight
    from passes.moments.moments import Moments
    from passes.moments.spread import Spread
    from passes.quantize.plan import QuantPlan
    from passes.target.target import Target

IMAGE_COUNT: Mapping[str, int] = MappingProxyType({"fast": 256, "standard": 512, "paper": 1024})
"""Images by effort, where the recipe names no count."""
OWN_IMAGES = 512  # of the user's own

EMPTY: Mapping[str, Any] = MappingProxyType({})


class Need(StrEnum):
    """What a method cannot do without; the value says so to people."""

    BATCH_NORM = "the model carries BatchNormalization"
    CLASSES = "an output of the model scores classes"
    ATTENTION = "the model is a vision transformer"
    TWO_WIDTHS = "--bits has low and high widths (w2/6)"


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatModel:
    """A float network, and what is known of it.

    graph: canonical; BatchNormalizations are in place until the pipeline folds them. source: the file that it came
    from. digest: SHA-256 of that file, in hexadecimal. normalization: how its inputs were normalised, where that is
    told. moments: value name → mean and deviation of each channel, (C,), as BatchNormalization tells them. inputs:
    input name → what it takes, for a method that looks at no image. teacher: the network that refinement approximates,
    where `graph` no longer computes it: the same nodes, other numbers. settled: of a folded graph, initializer → grid
    and integers that are decided already.
    """

    graph: ir.Model
    source: Path
    digest: str = ""
    normalization: Normalization | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict)
    inputs: Mapping[str, Spread] = field(default_factory=dict)
    teacher: ir.Model | None = None
    settled: Callable[[ir.Model], Mapping[str, QuantizedWeight]] | None = None


@dataclass(frozen=True, kw_only=True)
class Note:
    """A sentence that the user should read."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Numbers that a run reports, by their keys in `--json`. target: of which file, None where of the whole run."""

    values: Mapping[str, float | int | str | list[list[float | None]] | dict[str, Any] | None]
    target: str | None = None


@dataclass(frozen=True, kw_only=True)
class Distances:
    """How far images are from what each BatchNormalization remembers, by its node's name, in graph order."""

    by_layer: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every stage may use and none may change.

    recipe: what was asked for. device: "cpu" or "cuda". own_images: whether the user gave images. zoo: models that
    images are made by, none where the model itself makes them. work: where long stages keep how far they are. workers:
    the processes that make images together. trainers: those that train together, which are the same, and stay for it
    when the images are made; or this one alone. shard: which of the images this run makes.
    progress: makes the display of one long stage. tell: takes what is to be reported.
    """

    recipe: Recipe
    device: str = "cpu"
    own_images: bool = False
    zoo: Sequence[Member] = ()
    work: WorkFolder | None = None
    workers: Workers = ALONE
    trainers: Workers = ALONE
    shard: Shard = WHOLE
    progress: Callable[[str], Progress | None] = lambda _: None
    tell: Callable[[Note | Measurement | Distances], None] = lambda _: None

    def checkpoint(self, stage: str, *rests_on: str | NDArray[Any]) -> Checkpoint | None:
        """Where a stage keeps what it finds; None where nothing is kept. rests_on: all that it follows from."""
        return None if self.work is None else self.work.checkpoint(stage, *rests_on, self.device)

    @property
    def bits(self) -> Bits:
        """Those of the recipe."""
        return Bits.parse(self.recipe.bits)

    @property
    def image_count(self) -> int:
        """How many images the recipe asks for; of the user's own, as many as calibration has use for."""
        return self.recipe.images or (OWN_IMAGES if self.own_images else IMAGE_COUNT[self.recipe.effort])


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to compress without data: each subclass is one, and its fields are its settings.

    name: as users write it; summary: one line for them. needs: what it cannot do without. priority: among methods whose
    needs are met, `auto` takes the one with the greatest; 0 is only for who asks. efforts: effort → values of fields
    that differ from the defaults. equalizes: whether channels are equalized across layers, asked or not (DFQ).
    default_tuning: None for what the bits suggest. takes_zoo: whether images may be made by other models (`--zoo`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    priority: ClassVar[int] = 0
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = EMPTY
    equalizes: ClassVar[bool] = False
    default_tuning: ClassVar[str | None] = None
    takes_zoo: ClassVar[bool] = False

    def check(self, recipe: Recipe, targets: Sequence[Target]) -> None:
        """Refuse what this method cannot do, before any work.

        Raises:
            InputError: the recipe asks for it.
        """
        if Bits.parse(recipe.bits).low is not None and Need.TWO_WIDTHS not in self.needs:
            raise InputError(
                f"--method {self.name} does not take --bits {recipe.bits}: it gives all weights one width, as in w4a8.",
                field="bits",
            )

    def makes_images(self, recipe: Recipe) -> bool:
        """Whether numbers will be decided by images that this method makes."""
        return True

    def fitted(self, model: FloatModel, recipe: Recipe) -> tuple[Self, int]:
        """The method with what its effort comes to for this model, and how many images it makes then.

        Raises:
            InputError: the recipe names more images than memory may hold.
        """
        return self, _count(model, recipe)

    def images(self, model: FloatModel, run: Run) -> ImageSource | None:
        """Where images come from; None where the method makes none."""
        return None

    def rewrite(self, model: FloatModel, images: ImageSource | None, run: Run) -> FloatModel:
        """Another float network, or weights that are settled already. The graph may be edited in place."""
        return model

    def observe(
        self,
        model: FloatModel,
        images: ImageSource | None,
        targets: Sequence[Target],
        calibration: Calibration,
        run: Run,
    ) -> Observations:
        """Ranges and means of the folded network's values: by default, one pass of the images."""
        assert images is not None
        return calibration.observe(
            model.graph,
            images.fixed(run.image_count).samples,
            targets,
            device=run.device,
            progress=run.progress("calibrating"),
        )

    def refine(
        self, model: FloatModel, plan: QuantPlan, target: Target, images: ImageSource | None, run: Run
    ) -> QuantPlan:
        """A better plan for the folded network: what training the quantized graph found. By default the plan itself."""
        return plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Making:
    """Images that are to be made. count: of all shards. normalization: of the model's inputs, where it is told.
    checkpoint: where the making goes on from, and keeps how far it is. workers, shard: as of `Run`."""

    count: int
    seed: int
    normalization: Normalization | None = None
    device: str = "cpu"
    progress: Progress | None = None
    checkpoint: Checkpoint | None = None
    workers: Workers = ALONE
    shard: Shard = WHOLE

    def __post_init__(self) -> None:
        IMAGES.check("count", self.count)


@dataclass(frozen=True, kw_only=True)
class Synthesis(Method):
    """A method that makes a number of images and no more. A field `steps` counts the visits to each image."""

    @property
    def has_independent_batches(self) -> bool:
        """Whether a batch comes out the same whatever the others are, so that shards make the images of one run."""
        return True

    def fitted(self, model: FloatModel, recipe: Recipe) -> tuple[Self, int]:
        """With as many steps, and images, as the effort allows; what the recipe names itself stays."""
        steps: int | None = getattr(self, "steps", None)
        count = _count(model, recipe)
        if not steps:
            return self, count
        named = recipe.steps is not None or "steps" in recipe.settings.get(self.name, {})
        count, fewer = affordable(
            self.work(model.graph),
            limit_of(recipe.effort, recipe.minutes),
            images=count,
            steps=steps,
            fixed_images=recipe.images is not None,
            fixed_steps=named,
        )
        return replace(self, **{"steps": fewer}), count

    def work(self, model: ir.Model) -> Work:
        """Of one visit to an image."""
        return work_per_sample(model.graph)

    def images(self, model: FloatModel, run: Run) -> ImageSource:
        """Images by `make`, made when first asked for, or by an earlier run with a work folder."""
        from onnxdfq.methods.kept_images import images_checkpoint, kept_images, shard_facts

        def found(count: int) -> Images:
            making = Making(
                count=count,
                seed=run.recipe.seed,
                normalization=model.normalization,
                device=run.device,
                progress=run.progress("synthesizing images"),
                checkpoint=images_checkpoint(self, model, count, run),
                workers=run.workers,
                shard=run.shard,
            )
            images = kept_images(
                making, lambda: self.for_run(model, making, run), lambda text: run.tell(Note(text=text))
            )
            if run.shard.is_whole:
                return images
            return replace(images, provenance=images.provenance | shard_facts(self, model, count, run))

        return FixedImages(found)

    def for_run(self, model: FloatModel, making: Making, run: Run) -> Images:
        """The images of a run; as `make`, where nothing else of the run counts."""
        return self.make(model.graph, making)

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
        """`make`, by what `Making` is made of."""
        making = Making(count=count, seed=seed, normalization=normalization, device=device, progress=progress)
        return self.make(model, making)

    @abstractmethod
    def make(self, model: ir.Model, making: Making) -> Images:
        """Make images.

        Args:
            model: canonical and float, its BatchNormalizations in place; it is only read.
            making: how many, and how.

        Raises:
            ShapeError, DataError; NoBatchNorm, UnsupportedOperator where the method inverts the network.
        """


def _count(model: FloatModel, recipe: Recipe) -> int:
    """Images that the recipe names, or those of its effort that memory holds. Raises InputError."""
    check_images(model.graph, recipe.images, recipe.batch_size)
    return recipe.images or min(IMAGE_COUNT[recipe.effort], images_in_memory(model.graph))
