"""Distillation of the float network into its whole QDQ graph, from where block-wise tuning left it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.precision import computing_in, resolve_precision
from onnxdfq.images.samples import SamplesLike
from onnxdfq.images.shards import Shards
from onnxdfq.progress import Progress
from onnxdfq.training.data import TrainingData
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.loop import Loop, Training, step_generator
from onnxdfq.training.outputs import distilled_outputs
from onnxdfq.training.rates import Rates
from onnxdfq.training.student import Student
from onnxdfq.tuning.blocks import find_blocks
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.slices import Slices
from passes.quantize.plan import QuantPlan
from passes.target.target import Target

LEAST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """Trains a plan's weights, biases and scales so that the QDQ graph's outputs become the float network's.

    Args:
        loop: Its steps.
        distillation: Its loss.
        rates: Of what trains.
        augmented: Whether images are mirrored and moved by a few pixels, and a third of a batch is mixed with others.

    Source: the fine-tuning of HAST, arXiv 2303.13826, and SynQ, ICLR 2025; without cross entropy, as AIT, CVPR 2022.
    """

    loop: Loop
    distillation: Distillation = field(default_factory=Distillation)
    rates: Rates = field(default_factory=Rates)
    augmented: bool = True

    def within(self, visits: float) -> Self:
        """With so few steps that images are looked at no more often than that, at least `LEAST_STEPS`."""
        steps = max(min(self.loop.steps, int(visits / self.loop.batch_size)), min(self.loop.steps, LEAST_STEPS))
        return replace(self, loop=replace(self.loop, steps=steps))

    def train(
        self,
        model: ir.Model,
        plan: QuantPlan,
        target: Target,
        samples: SamplesLike | Shards,
        *,
        reference: ir.Model | None = None,
        learn_scales: bool = False,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        workers: Workers = ALONE,
    ) -> tuple[QuantPlan, Training]:
        """A better plan for the same graph, or the same where nothing better was found.

        Args:
            model: The float graph that the plan is for; it is only read.
            plan: Where training starts.
            target: As for `QdqGraph`.
            samples: What it trains on, in the model's input units; one in `HELD_BACK` decides which state is kept.
            reference: The float network that is approximated, where `model` holds integers of the plan already.
            learn_scales: Whether scales may take any value.
            seed: Of the order of images, and of their views.
            device: Where both networks run.
            progress: Called after each step.
            checkpoint, workers: As for `Loop.run`. All workers get the same plan.
        """
        where = torch.device(device)
        dtype = resolve_precision(where, "auto")
        taps = _exits(model) if self.distillation.features else ()
        outputs = distilled_outputs(model.graph)
        names, classes = [output.name for output in outputs], [output.classes for output in outputs]
        student = Student(
            model,
            plan,
            target,
            reference=reference,
            outputs=names,
            taps=taps,
            learn_scales=learn_scales,
            dtype=dtype,
        ).to(where)
        teacher = TorchGraph(reference or model, inputs=student.input_names, outputs=[*names, *taps]).to(where)
        data = TrainingData(model, samples, where)

        def expected(inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
            with torch.no_grad(), computing_in(dtype, where):
                found: Sequence[Tensor] = teacher(*inputs)
            return found

        def losses(index: Int64[Tensor, "n"], views: torch.Generator | None, slices: Slices) -> Iterator[Tensor]:
            yield from self.distillation.losses(
                data.sliced(index, views, slices.own),
                slices,
                teacher=expected,
                student=lambda inputs: student(*inputs),
                classes=classes,
            )

        @torch.no_grad()
        def held_back() -> float:
            parts = data.batches(data.held, self.loop.batch_size)
            each = [next(losses(part, None, Slices(size=len(part)))) for part in parts]
            return sum(float(loss) * len(part) for part, loss in zip(parts, each, strict=True)) / sum(map(len, parts))

        def step_losses(index: Int64[Tensor, "n"], step: int, slices: Slices) -> Iterator[Tensor]:
            views = step_generator(seed, step) if self.augmented else None
            return losses(data.trains[index], views, slices)

        loop = replace(self.loop, batch_size=data.batch_size(self.loop.batch_size))
        training = loop.run(
            self.rates.groups(student),
            step_losses,
            data.parts,
            held_back=held_back,
            state=student,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
            workers=workers,
        )
        return (student.plan() if training.best.step else plan), training


EFFORTS = {
    "fast": Distilling(loop=Loop(steps=600, batch_size=32, warm_up=0.1)),
    "standard": Distilling(loop=Loop(steps=3000, batch_size=32, warm_up=0.1)),
    "paper": Distilling(loop=Loop(steps=20000, batch_size=32, warm_up=0.1)),
}


def _exits(model: ir.Model) -> tuple[str, ...]:
    """Where blocks end whose exits the outputs are not."""
    outputs = {value.name for value in model.graph.outputs}
    return tuple(block.exit for block in find_blocks(model) if block.exit not in outputs)
