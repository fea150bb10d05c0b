"""Distillation of the float network into its whole QDQ graph, from where block-wise tuning left it."""

from dataclasses import dataclass, field, replace
from typing import Self

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.precision import computing_in, resolve_precision
from onnxdfq.images.samples import Samples, SamplesLike
from onnxdfq.progress import Progress
from onnxdfq.training.checkpoint import Checkpoint
from onnxdfq.training.data import TrainingData
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.loop import Group, Loop, Training
from onnxdfq.training.outputs import distilled_outputs
from onnxdfq.training.student import Student
from onnxdfq.tuning.blocks import find_blocks
from passes.quantize.plan import QuantPlan
from passes.target.target import Target

LEAST_STEPS = 100
HELD_BACK = 10  # one image of so many decides which state is kept, and trains nothing


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """Trains a plan's weights, biases and scales so that the QDQ graph's outputs become the float network's.

    Args:
        loop: Its steps.
        distillation: Its loss.
        weight_rate: Learning rate of weights, in steps of their grids.
        factor_rate: That of the factor or scale of each channel of a weight, in log2.
        scale_rate: That of activation scales, in log2.
        bias_rate: That of biases, in units of the layer's root mean square bias.
        augmented: Whether images are mirrored and moved by a few pixels, and a third of a batch is mixed with others.

    Source: the fine-tuning of HAST, arXiv 2303.13826, and SynQ, ICLR 2025; without cross entropy, as AIT, CVPR 2022.
    """

    loop: Loop
    distillation: Distillation = field(default_factory=Distillation)
    weight_rate: float = 1e-3
    factor_rate: float = 1e-3
    scale_rate: float = 4e-3
    bias_rate: float = 1e-3
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
        samples: SamplesLike,
        *,
        reference: ir.Model | None = None,
        learn_scales: bool = False,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
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
            checkpoint: As for `Loop.run`.
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
        data = TrainingData(model, Samples.of(samples), where)
        held = torch.arange(0, len(samples), HELD_BACK)
        trains = torch.tensor(sorted(set(range(len(data))) - set(held.tolist())))

        def loss_of(index: Int64[Tensor, "n"], views: torch.Generator | None) -> Tensor:
            inputs = data.batch(index, views)
            with torch.no_grad(), computing_in(dtype, where):
                expected = teacher(*inputs)
            found = student(*inputs)
            count = len(outputs)
            return self.distillation.loss(found[:count], expected[:count], classes, found[count:], expected[count:])

        @torch.no_grad()
        def held_back() -> float:
            parts = data.batches(held, self.loop.batch_size)
            return sum(float(loss_of(part, None)) * len(part) for part in parts) / sum(map(len, parts))

        def step_loss(index: Int64[Tensor, "n"], step: int) -> Tensor:
            views = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63) if self.augmented else None
            return loss_of(trains[index], views)

        loop = replace(self.loop, batch_size=data.batch_size(self.loop.batch_size))
        training = loop.run(
            self._groups(student),
            step_loss,
            len(trains),
            held_back=held_back,
            state=student,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
        )
        return (student.plan() if training.best.step else plan), training

    def _groups(self, student: Student) -> list[Group]:
        shadows = list(student.shadows())
        groups = [
            Group(parameters=[shadow.position for shadow in shadows], rate=self.weight_rate),
            Group(parameters=[shadow.change for shadow in shadows], rate=self.factor_rate),
            Group(parameters=student.scales(), rate=self.scale_rate),
        ]
        groups += [Group(parameters=[bias], rate=self.bias_rate * _size(bias)) for bias in student.biases()]
        return [group for group in groups if group.parameters]


EFFORTS = {
    "fast": Distilling(loop=Loop(steps=600, batch_size=32, warm_up=0.1)),
    "standard": Distilling(loop=Loop(steps=3000, batch_size=32, warm_up=0.1)),
    "paper": Distilling(loop=Loop(steps=20000, batch_size=32, warm_up=0.1)),
}


def _size(tensor: Tensor) -> float:
    """Root mean square; 1 where all are 0."""
    return float(tensor.detach().square().mean().sqrt()) or 1.0


def _exits(model: ir.Model) -> tuple[str, ...]:
    """Where blocks end whose exits the outputs are not."""
    outputs = {value.name for value in model.graph.outputs}
    return tuple(block.exit for block in find_blocks(model) if block.exit not in outputs)
