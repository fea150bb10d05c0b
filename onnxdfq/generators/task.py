"""What a generator is to achieve: images to which the float network answers with their labels, and whose statistics
are those that its BatchNormalizations remember."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onnxdfq.generators.labels import certainty_loss, label_loss
from onnxdfq.generators.memory import LabelMemory
from onnxdfq.progress import Progress
from onnxdfq.synthesis.hyperparameters import batch_generators
from onnxdfq.synthesis.input_range import InputRange
from onnxdfq.synthesis.mixing import draw_box, mixed
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.training.levels import pooled
from onnxdfq.training.loop import Group, Loop, Training, step_generator, whole
from onnxdfq.work.checkpoint import Checkpoint

HELD_BACK_STEP = 2**40  # draws that no step takes


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Generated images, and what the float network makes of them; gradients pass back to the generator.

    pixels: (N, C, H, W) in the model's units. labels: (N, K), shares. taps: what the moments follow from. outputs: of
    the network, those that are distilled. features: of the levels that the task names.
    wanted: (N,), drawn from 0 to 1: how sure of each image the network is to be, see `GeneratorLoss`.
    """

    pixels: Float32[Tensor, "n c h w"]
    labels: Float32[Tensor, "n k"]
    taps: list[Float[Tensor, "n _ ..."]]
    outputs: list[Float[Tensor, "..."]]
    features: list[Float[Tensor, "n ..."]]
    wanted: Float32[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class GeneratorLoss:
    """The loss of a generator on one batch.

    label: weight of the cross entropy. statistics: that of the distance of a batch's statistics. relative: whether
    errors are in units of each channel's own deviation, so that one weight suits all networks; otherwise squared errors
    of means and variances, as published. stop_at: the share of images given their labels at which a batch trains no
    more; None is never. likeness: weight of the similarity with earlier images of the same labels, where the task
    remembers them; without gradients it is left out. hardness: how much more images count that the network is not sure
    of. certainty: instead of the cross entropy, how sure the network is to be of an image at least; each image is to
    have a certainty of its own, between that and 1. one_hot: weight of the cross entropy with what the network itself
    takes an image for. entropy: of how evenly a batch is spread over the classes, in decimal digits. activation: of the
    mean activation of the last level that the task names, which is to be large. mixing: how often, 0 to 1, a whole
    batch is mixed: each image has another one in a box, and shares of both labels.

    Source: GDFQ, arXiv 2003.03603, Eq. 5, 7 and 9, and the table of its stopping conditions; EnhancingDFQ, Eq. 12;
    HAST for hardness and IntraQ for certainty (see `labels`). DAFL, arXiv 1904.01186, Eq. 3, 5 and 7, and its public
    code for the last three, with the mixing of MixMix, Eq. 7 to 9.
    """

    label: float = 1.0
    statistics: float = 0.1
    relative: bool = False
    stop_at: float | None = None
    likeness: float = 0.0
    hardness: float = 0.0
    certainty: float | None = None
    one_hot: float = 0.0
    entropy: float = 0.0
    activation: float = 0.0
    mixing: float = 0.0

    def __call__(
        self, network: TappedNetwork, batch: Batch, scores: int, memory: LabelMemory | None
    ) -> Float32[Tensor, ""]:
        """scores: which output scores the labels. memory: of earlier images; a batch that trains is taken into it."""
        found = batch.outputs[scores]
        total = self.label * self._of_labels(found, batch)
        if self.one_hot or self.entropy:
            total = total + self._of_answers(found)
        if self.activation and batch.features:
            total = total - self.activation * batch.features[-1].float().abs().mean()
        if self.statistics and batch.taps:
            first, second = network.moments(batch.taps)
            total = total + self.statistics * self._distance(network, first, second)
        # what is remembered changes from step to step: a held-back loss would rise with it, and the start seem the best
        if memory is not None and self.likeness and torch.is_grad_enabled():
            features = pooled(batch.features[-1:])[0]
            total = total + self.likeness * memory.similarity(features, batch.labels)
            memory.remember(features, batch.labels)
        if self.stop_at is not None and agreement(found, batch.labels) > self.stop_at:
            return 0 * total
        return total

    def _of_labels(self, found: Tensor, batch: Batch) -> Tensor:
        if self.certainty is None:
            return label_loss(found, batch.labels, hardness=self.hardness)
        return certainty_loss(found, batch.labels, self.certainty + (1 - self.certainty) * batch.wanted)

    def _of_answers(self, found: Tensor) -> Tensor:
        """Each image of one class, and each class as often as any other."""
        scores = found.flatten(1).float()
        sure = functional.cross_entropy(scores, scores.argmax(1))
        mean = scores.softmax(1).mean(0)
        return self.one_hot * sure + self.entropy * (mean * mean.clamp_min(1e-12).log10()).sum()

    def _distance(self, network: TappedNetwork, first: Tensor, second: Tensor) -> Tensor:
        targets = network.targets
        if self.relative:
            return targets.distance(first, second)
        error = first.square() + (second - first.square() - targets.var).square()
        return (targets.layer_mean * error).sum()


def agreement(scores: Float[Tensor, "n k ..."], labels: Float32[Tensor, "n k"]) -> float:
    """Share of images to whose greatest label the network gives the greatest score."""
    return float((scores.flatten(1).argmax(1) == labels.argmax(1)).float().mean())


class GeneratorTask:
    """A generator and the float network that judges it.

    Args:
        generator: How many images, and what they are drawn from → standardised images, and shares of labels. It is
            moved to the network's device.
        network: Float; its outputs are those that are distilled, and behind them the features of `levels`.
        scale: From standardised pixels to the model's units.
        scores: Which of the outputs scores the labels.
        labels: How many there are.
        loss: Of the generator.
        levels: Names of the features.
        memory: Of earlier images.
    """

    def __init__(
        self,
        generator: nn.Module,
        network: TappedNetwork,
        scale: InputRange,
        *,
        scores: int,
        labels: int,
        loss: GeneratorLoss,
        levels: Sequence[str] = (),
        memory: LabelMemory | None = None,
    ) -> None:
        self.generator = generator.to(network.device)
        self.memory = None if memory is None else memory.to(network.device)
        self.network, self.scale, self.scores, self.levels = network, scale, scores, tuple(levels)
        self.labels, self._loss = labels, loss
        self._limits = scale.limits(network.device)

    def with_generator(
        self, generator: nn.Module, memory: LabelMemory | None = None, *, loss: GeneratorLoss | None = None
    ) -> "GeneratorTask":
        """The same task of another generator, or with another loss."""
        return GeneratorTask(
            generator,
            self.network,
            self.scale,
            scores=self.scores,
            labels=self.labels,
            loss=loss or self._loss,
            levels=self.levels,
            memory=memory,
        )

    def copy(self, **changes: float) -> "GeneratorTask":
        """A task that learns on without changing this one. changes: to its loss."""
        loss = replace(self._loss, **changes)  # type: ignore[arg-type]
        return self.with_generator(deepcopy(self.generator), deepcopy(self.memory), loss=loss)

    @property
    def state(self) -> nn.Module:
        """All that its training changes."""
        return nn.ModuleList([self.generator] if self.memory is None else [self.generator, self.memory])

    def generate(
        self, count: int, random: torch.Generator
    ) -> tuple[Float32[Tensor, "n c h w"], Float32[Tensor, "n k"]]:
        """Images in the model's units, and the labels that they were asked for; the network does not look at them."""
        standardised, labels = self.generator(count, random)
        return self.scale.to_model(torch.clamp(standardised, *self._limits)), labels

    def draw(self, count: int, random: torch.Generator) -> Batch:
        """Images, and what the network says of them."""
        pixels, labels = self.generate(count, random)
        # without mixing nothing is drawn here: other generators see the images that they always saw
        if self._loss.mixing and float(torch.rand((), generator=random)) < self._loss.mixing:
            pixels, labels = self._mixed(pixels, labels, random)
        wanted = torch.rand(count, generator=random).to(pixels.device)
        taps, values = self.network.forward(self.network.given(pixels))
        count = len(values) - len(self.levels)
        return Batch(
            pixels=pixels,
            labels=labels,
            taps=taps,
            outputs=values[:count],
            features=values[count:],
            wanted=wanted,
        )

    def _mixed(self, pixels: Tensor, labels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        partners = torch.randperm(len(pixels), generator=random).to(pixels.device)
        found, share = mixed(pixels, partners, draw_box(pixels.shape[2], pixels.shape[3], random))
        return found, (1 - share) * labels + share * labels[partners]

    def loss(self, batch: Batch) -> Float32[Tensor, ""]:
        """Of the generator."""
        return self._loss(self.network, batch, self.scores, self.memory)

    def group(self, rate: float) -> Group:
        """What trains. rate: of Adam."""
        return Group(parameters=list(self.generator.parameters()), rate=rate, momentum=0.5)

    def batch_size(self, wanted: int) -> int:
        """Images at once; as many as the model runs at, where it does at one number only."""
        return self.network.batch_sizes(wanted, wanted)[0]

    def warm_up(
        self,
        loop: Loop,
        rate: float,
        *,
        seed: int,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> Training:
        """Train the generator alone, in place."""

        @torch.no_grad()
        def held_back() -> float:
            return float(self.loss(self.draw(loop.batch_size, step_generator(seed, HELD_BACK_STEP))))

        return loop.run(
            [self.group(rate)],
            whole(lambda index, step: self.loss(self.draw(len(index), step_generator(seed, step)))),
            loop.batch_size,
            held_back=held_back,
            state=self.state,
            seed=seed,
            progress=progress,
            checkpoint=checkpoint,
        )

    @torch.no_grad()
    def images(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[Float32[NDArray[np.float32], "n c h w"], Float32[NDArray[np.float32], "n k"]]:
        """Images in the model's units, and their labels. Fewer, of one seed and batch size, are the first of more."""
        generators = batch_generators(seed, -(-count // batch_size))
        pixels, labels = zip(*(self.generate(batch_size, random) for random in generators), strict=True)
        return torch.cat(pixels)[:count].cpu().numpy(), torch.cat(labels)[:count].cpu().numpy()
