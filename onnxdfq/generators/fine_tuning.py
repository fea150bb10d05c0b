"""The quantized network learns from the float one on images of a generator, which learns on."""

from dataclasses import dataclass, field, replace

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.func import functional_call

from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last, resolve_precision
from onnxdfq.generators.labels import label_loss
from onnxdfq.generators.margins import generator_margins, student_margins
from onnxdfq.generators.task import HELD_BACK_STEP, Batch, GeneratorTask
from onnxdfq.progress import Progress
from onnxdfq.training.distillation import Distillation, relative_error
from onnxdfq.training.loop import Loop, Training, step_generator, whole
from onnxdfq.training.outputs import distilled_outputs
from onnxdfq.training.rates import Rates
from onnxdfq.training.student import Student
from onnxdfq.work.checkpoint import Checkpoint
from passes.quantize.plan import QuantPlan
from passes.target.target import Target

HELD_BACK = 4  # batches that decide which state is kept


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Trains a plan on images of a generator, one step of each in turn on the same images.

    Args:
        loop: Its steps.
        generator_rate: Of Adam, for the generator; 0 leaves it as its warm-up left it.
        rates: Of the quantized network.
        temperature: Of both networks' answers when they are compared.
        label: Weight of the cross entropy of the quantized network with the labels.
        answers: Weight of the distance of both networks' answers.
        margins: Whether both networks train on the difference of their answers (AdaDFQ) in place of labels and answers.
        features: Weight of the distance of the levels that the task names, quantized, from those of the float network.

    Source: GDFQ, arXiv 2003.03603, Eq. 10 and Algorithm 1; EnhancingDFQ, Eq. 11 and 13; AdaDFQ. Their quantized
    networks have floats behind their integers, too; here they move in steps of their grids, with Adam, as in
    `Distilling`.
    """

    loop: Loop
    generator_rate: float = 1e-3
    rates: Rates = field(default_factory=Rates)
    temperature: float = 20.0
    label: float = 1.0
    answers: float = 1.0
    margins: bool = False
    features: float = 0.0

    def train(
        self,
        model: ir.Model,
        plan: QuantPlan,
        target: Target,
        task: GeneratorTask,
        *,
        reference: ir.Model | None = None,
        learn_scales: bool = False,
        seed: int = 0,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> tuple[QuantPlan, Training]:
        """A better plan for the same graph, or the same where nothing better was found.

        What is held back are images of the generator as its warm-up left it. Its task is only read: several plans start
        from one generator.

        Args:
            model: Folded, which the plan is for; it is only read.
            plan: Where training starts.
            target: As for `QdqGraph`.
            task: The generator and its float network.
            reference: As for `Student`.
            learn_scales: Whether scales may take any value.
            seed: Of the images.
            progress: Called after each step.
            checkpoint: As for `Loop.run`.
        """
        device, feeds = task.network.device, Feeds(model)
        outputs = distilled_outputs(model.graph)
        classes, levels = [output.classes for output in outputs], task.levels if self.features else ()
        student = Student(
            model,
            plan,
            target,
            reference=reference,
            outputs=[*(output.name for output in outputs), *levels],
            learn_scales=learn_scales,
            dtype=resolve_precision(device, "auto"),
        ).to(device)
        size = task.batch_size(self.loop.batch_size)
        with torch.no_grad():
            draws = (task.draw(size, step_generator(seed, HELD_BACK_STEP + place)) for place in range(HELD_BACK))
            unseen = [replace(batch, taps=[]) for batch in draws]
        learning = task.copy(label=0.0) if self.margins else task.copy()

        def inputs(pixels: Tensor) -> tuple[Tensor, ...]:
            given = {name: channels_last(each) for name, each in task.network.given(pixels).items()}
            return feeds.of(student.input_names, given)

        def student_loss(batch: Batch) -> Tensor:
            found = student(*inputs(batch.pixels.detach()))
            found, features = found[: len(classes)], found[len(classes) :]
            expected = [output.detach() for output in batch.outputs]
            if self.margins:
                return student_margins(expected[task.scores], found[task.scores], self.temperature)
            # as published: means over the batch and the classes
            distance = Distillation(temperature=self.temperature).loss(found, expected, classes)
            total = self.answers * distance / batch.labels.shape[1]
            if self.label:
                total = total + self.label * label_loss(found[task.scores], batch.labels)
            if levels:
                pairs = zip(features, batch.features, strict=True)
                total = total + self.features * torch.stack([relative_error(a, b.detach()) for a, b in pairs]).sum()
            return total

        @torch.no_grad()
        def held_back() -> float:
            return sum(float(student_loss(batch)) for batch in unseen) / HELD_BACK

        def step_loss(index: Int64[Tensor, "n"], step: int) -> Tensor:
            with torch.set_grad_enabled(self.generator_rate > 0):
                batch = learning.draw(len(index), step_generator(seed, step))
            if not self.generator_rate:
                return student_loss(batch)
            loss = learning.loss(batch)
            if self.margins:  # through the quantized network to its images, and not to its weights
                still = {name: each.detach() for name, each in student.state_dict(keep_vars=True).items()}
                found = functional_call(student, still, inputs(batch.pixels))[task.scores]
                loss = loss + generator_margins(batch.outputs[task.scores], found, batch.labels)
            return torch.stack([loss, student_loss(batch)])

        groups = self.rates.groups(student) + ([learning.group(self.generator_rate)] if self.generator_rate else [])
        training = replace(self.loop, batch_size=size).run(
            groups,
            whole(step_loss),
            size,
            held_back=held_back,
            state=nn.ModuleList([student, learning.state]),
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
        )
        return (student.plan() if training.best.step else plan), training
