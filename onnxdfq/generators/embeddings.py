"""What tells classes apart, at each level of a network: weights of classifiers on its features."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from onnxdfq.generators.labels import label_loss
from onnxdfq.generators.preparing import seeded
from onnxdfq.generators.task import HELD_BACK_STEP, GeneratorTask
from onnxdfq.progress import Progress
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.levels import pooled
from onnxdfq.training.loop import Group, Loop, step_generator, whole

RATE = 1e-3
ANSWERS = Distillation(temperature=1.0)


class LevelClassifiers(nn.Module):
    """A classifier of one hidden layer for each level.

    Args:
        inputs: Lengths of the levels' pooled features.
        labels: How many there are.
        length: Of the hidden layers, and so of the rows of the last weights.
    """

    def __init__(self, inputs: Sequence[int], labels: int, length: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, length), nn.ReLU(), nn.Linear(length, labels))
            for size in inputs
        )

    def forward(self, features: Sequence[Float32[Tensor, "n _"]]) -> list[Float32[Tensor, "n k"]]:
        """Scores, level by level."""
        return [part(each) for part, each in zip(self.parts, features, strict=True)]

    @torch.no_grad()
    def embeddings(self) -> Float32[Tensor, "k d"]:
        """Mean over levels of the last weights, in units of their deviation: as large as noise, for what reads both."""
        mean = torch.stack([part[-1].weight for part in self.parts]).mean(0)  # type: ignore[index]
        return (mean - mean.mean(0)) / mean.std().clamp_min(1e-12)


def label_embeddings(
    task: GeneratorTask, length: int, loop: Loop, *, seed: int, progress: Progress | None = None
) -> Float32[Tensor, "k d"]:
    """Embeddings of labels that features of all levels have formed.

    Args:
        task: A trained generator, whose images the classifiers learn on, and its network, whose levels are read.
        length: d.
        loop: Steps of the classifiers.
        seed: Of their first weights, and of images.
        progress: Called after each step.

    Source: EnhancingDFQ, Eq. 3 to 5. Features are pooled, since weights of all levels have to have one length to be
    averaged; and rows are centred and scaled, which the paper does not say.
    """
    with torch.no_grad():
        batch = task.draw(loop.batch_size, step_generator(seed, HELD_BACK_STEP))
        sizes = [each.shape[1] for each in pooled(batch.features)]
    classifiers = seeded(seed, lambda: LevelClassifiers(sizes, task.labels, length)).to(task.network.device)

    def loss(step: int) -> Tensor:
        with torch.no_grad():
            given = task.draw(loop.batch_size, step_generator(seed, step))
            answers = given.outputs[task.scores].flatten(1)
        found = classifiers(pooled(given.features))
        parts = [label_loss(each, given.labels) + ANSWERS.loss([each], [answers], [True]) for each in found]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def held_back() -> float:
        return float(loss(HELD_BACK_STEP))

    loop.run(
        [Group(parameters=list(classifiers.parameters()), rate=RATE)],
        whole(lambda _, step: loss(step)),
        loop.batch_size,
        held_back=held_back,
        state=classifiers,
        seed=seed,
        progress=progress,
    )
    return classifiers.embeddings()
