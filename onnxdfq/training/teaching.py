"""Knowledge distillation of one float network into another, which stays the ONNX graph that it is."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import computing_in, resolve_precision
from onnxdfq.errors import InputError
from onnxdfq.images.samples import SamplesLike
from onnxdfq.images.shards import Shards
from onnxdfq.progress import Progress
from onnxdfq.recipe.choices import Statistics
from onnxdfq.training.data import TrainingData
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.float_student import FloatStudent
from onnxdfq.training.loop import Group, Loop, Training, step_generator
from onnxdfq.training.matching import Matching
from onnxdfq.training.rates import FloatRates
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.slices import Slices
from passes.write.write_initializers import WriteInitializers

WHOLE = Slices(size=1)
"""A batch that is not cut, of however many images."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Trains a float student so that its outputs become its teacher's.

    Args:
        loop: Its steps.
        distillation: Its loss.
        rates: Of what trains.
        statistics: What BatchNormalizations normalise by in training. The batch is what a fresh student needs, and a
            pruned one bears ten times the rate by it (ResNet-20, a fifth of the channels).
        momentum: Share of each batch in the running statistics.
        augmented: Whether images are mirrored and moved by a few pixels, and a third of a batch is mixed with others.

    A loop of several slices is for statistics that are fixed: those of a batch hang together.

    Source: Hinton et al., arXiv 1503.02531; with inner values, Knowledge Within, arXiv 1912.01274, as MixMix has it.
    """

    loop: Loop
    distillation: Distillation = field(default_factory=lambda: Distillation(temperature=3.0))
    rates: FloatRates = field(default_factory=FloatRates)
    statistics: Statistics = "batch"
    momentum: float = 0.1
    augmented: bool = True

    def train(
        self,
        teacher: ir.Model,
        student: ir.Model,
        matching: Matching,
        samples: SamplesLike | Shards,
        *,
        names: Collection[str],
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        workers: Workers = ALONE,
    ) -> Training:
        """Train on fixed images; what was best on the tenth that is held back is written into `student`.

        Args:
            teacher: Float; it is only read.
            student: Float; its initializers get other numbers.
            matching: Of both.
            samples: What it trains on, in the teacher's input units.
            names: Initializers of the student that may change.
            seed: Of the order of images, and of their views.
            device: Where both networks run.
            progress: Called after each step.
            checkpoint, workers: As for `Loop.run`. All workers come to the same student.

        Raises:
            InputError: Nothing in the student trains.
        """
        lesson = Lesson(self, teacher, student, matching, names=names, device=device)
        data = TrainingData(teacher, samples, lesson.device)
        size = data.batch_size(self.loop.batch_size)

        @torch.no_grad()
        def held_back() -> float:
            parts = data.batches(data.held, size)
            return sum(lesson.held_back(data.batch(part, None)) * len(part) for part in parts) / sum(map(len, parts))

        def step_losses(index: Int64[Tensor, "n"], step: int, slices: Slices) -> Iterator[Tensor]:
            views = step_generator(seed, step) if self.augmented else None
            yield from lesson.losses(data.sliced(data.trains[index], views, slices.own), slices)

        training = replace(self.loop, batch_size=size).run(
            lesson.groups,
            step_losses,
            data.parts,
            held_back=held_back,
            state=lesson.student,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            workers=workers,
        )
        lesson.write(student)
        return training


class Lesson:
    """A student and its teacher as torch modules.

    Args:
        teaching: Its loss and rates.
        teacher, student: Float; they are only read.
        matching: Of both.
        names: Initializers of the student that may change.
        device: Where both run.

    Raises:
        InputError: Nothing in the student trains.
    """

    def __init__(
        self,
        teaching: Teaching,
        teacher: ir.Model,
        student: ir.Model,
        matching: Matching,
        *,
        names: Collection[str],
        device: str,
    ) -> None:
        self.device = torch.device(device)
        self._teaching, self._matching = teaching, matching
        self._dtype = resolve_precision(self.device, "auto")
        self.student = FloatStudent(
            student,
            inputs=matching.inputs,
            outputs=[*matching.student_outputs, *matching.student_taps],
            names=names,
            statistics=teaching.statistics,
            momentum=teaching.momentum,
            dtype=self._dtype,
        ).to(self.device)
        self._teacher = TorchGraph(
            teacher, inputs=Feeds(teacher).names, outputs=[*matching.outputs, *matching.taps]
        ).to(self.device)

    @property
    def groups(self) -> list[Group]:
        """All that trains."""
        return self._teaching.rates.groups(self.student)

    def loss(self, inputs: tuple[Tensor, ...]) -> Float32[Tensor, ""]:
        """Of one batch, BatchNormalizations in training. Raises InputError where no gradient reaches what trains."""
        return next(self.losses([inputs], WHOLE))

    def losses(self, parts: Sequence[tuple[Tensor, ...]], slices: Slices) -> Iterator[Float32[Tensor, ""]]:
        """The same, of a worker's own slices of a batch: see `Distillation.losses`."""
        for found in self._losses(parts, slices, training=True):
            if not found.requires_grad:
                raise InputError(
                    "No gradient reaches the student's weights: behind them are operators that only ONNX Runtime "
                    "computes."
                )
            yield found

    @torch.no_grad()
    def held_back(self, inputs: tuple[Tensor, ...]) -> float:
        """The same as the written file computes it."""
        return float(next(self._losses([inputs], WHOLE, training=False)))

    def write(self, student: ir.Model) -> None:
        """What was trained, into the graph that it came from."""
        WriteInitializers(self.student.numbers())(student)

    def _losses(
        self, parts: Sequence[tuple[Tensor, ...]], slices: Slices, *, training: bool
    ) -> Iterator[Float32[Tensor, ""]]:
        def expected(inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
            with torch.no_grad(), computing_in(self._dtype, self.device):
                found: Sequence[Tensor] = self._teacher(*inputs)
            return found

        return self._teaching.distillation.losses(
            parts,
            slices,
            teacher=expected,
            student=lambda inputs: self.student.train(training)(*inputs),
            classes=self._matching.classes,
        )
