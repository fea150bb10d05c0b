"""A float student learns from its teacher on images of a generator, which learns on."""

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.generators.task import HELD_BACK_STEP, GeneratorTask
from onnxdfq.progress import Progress
from onnxdfq.training.loop import Training, step_generator, whole
from onnxdfq.training.matching import Matching
from onnxdfq.training.teaching import Lesson, Teaching
from onnxdfq.work.checkpoint import Checkpoint

HELD_BACK = 4  # batches that decide which state is kept


def teach_on_generator(
    teaching: Teaching,
    teacher: ir.Model,
    student: ir.Model,
    matching: Matching,
    task: GeneratorTask,
    *,
    names: Collection[str],
    generator_rate: float,
    seed: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Training:
    """`Teaching.train` where images are made as they are needed: one step of each in turn on the same images.

    What is held back are images of the generator as its warm-up left it. Both train by `teaching`'s optimizer, which is
    to be Adam, for no generator trains by plain descent.

    Args:
        teaching: Its loop and losses; images are not augmented.
        teacher, student, matching, names: As for `Teaching.train`.
        task: The generator and its float network, which is the teacher; it is only read.
        generator_rate: 0 leaves the generator as it is.
        seed: Of the images.
        progress: Called after each step.
        checkpoint: As for `Loop.run`.

    Source: DAFL, arXiv 1904.01186, Algorithm 1, where the student sees the images without their gradients.

    Raises:
        InputError: Nothing in the student trains.
    """
    lesson = Lesson(teaching, teacher, student, matching, names=names, device=str(task.network.device))
    feeds, learning, size = Feeds(teacher), task.copy(), task.batch_size(teaching.loop.batch_size)

    def inputs(pixels: Tensor) -> tuple[Tensor, ...]:
        given = {name: channels_last(each) for name, each in task.network.given(pixels.detach()).items()}
        return feeds.of(feeds.names, given)

    with torch.no_grad():
        draws = (task.generate(size, step_generator(seed, HELD_BACK_STEP + place)) for place in range(HELD_BACK))
        unseen = [inputs(pixels) for pixels, _ in draws]

    def held_back() -> float:
        return sum(map(lesson.held_back, unseen)) / HELD_BACK

    def step_loss(index: Int64[Tensor, "n"], step: int) -> Tensor:
        with torch.set_grad_enabled(generator_rate > 0):
            batch = learning.draw(len(index), step_generator(seed, step))
        own = lesson.loss(inputs(batch.pixels))
        return torch.stack([learning.loss(batch), own]) if generator_rate else own

    training = replace(teaching.loop, batch_size=size).run(
        lesson.groups + ([learning.group(generator_rate)] if generator_rate else []),
        whole(step_loss),
        size,
        held_back=held_back,
        state=nn.ModuleList([lesson.student, learning.state]),
        seed=seed,
        progress=progress,
        checkpoint=checkpoint,
    )
    lesson.write(student)
    return training
