"""The search of DeepInversion and MixMix (arXiv 2011.09899, Algorithm 1), one batch after another."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional

from onnxdfq.generators.zoo import Found, Zoo
from onnxdfq.images.images import Images
from onnxdfq.methods.batches import Batch, batches, made, origin
from onnxdfq.methods.method import Making
from onnxdfq.methods.mixmix.deep_inversion import DeepInversion
from onnxdfq.methods.mixmix.losses import Balance, label_loss, prior_loss, statistics_loss
from onnxdfq.model_file import InputSpec
from onnxdfq.progress import Steps
from onnxdfq.synthesis.hyperparameters import delivered, describe
from onnxdfq.synthesis.input_range import BRIGHTEST, DARKEST, PIXEL_MEAN, PIXEL_STD, InputRange
from onnxdfq.synthesis.mixing import draw_box, mixed
from onnxdfq.synthesis.network import batch_sizes
from onnxdfq.synthesis.priors import canvas_extra
from onnxdfq.synthesis.start import LEAST_SIDE, starting_images
from onnxdfq.synthesis.view import View

WARM_UP = 0.05  # of a stage: 100 of DeepInversion's 2000 steps
BETAS = 0.5, 0.9
BALANCE_RATE = 0.01  # of that of the images


def synthesize(
    method: DeepInversion, zoo: Zoo, found: Sequence[Found], spec: InputSpec, scale: InputRange, making: Making
) -> Images:
    """Images of balanced labels.

    Args:
        method: The settings.
        zoo: What makes them.
        found: What is known of it.
        spec: Of the input that they are made for.
        scale: Of that input.
        making: How many; from its seed labels, models, boxes and starts are drawn.
    """
    several = batches(making, batch_sizes(making.count, method.batch_size))
    drawn, labels = {}, {}  # by number; of all batches, also of those that another makes
    for batch in several:
        drawn[batch.number] = sorted(torch.randperm(len(zoo), generator=batch.random)[: zoo.held].tolist())
        labels[batch.number] = _labels(batch.size, found[0].classes, batch.random)

    def make(batch: Batch, tell: Steps) -> Tensor:
        shape = (batch.size, *spec.planes)
        start = starting_images(spec, shape, seed=making.seed, first=batch.first, generator=batch.random)
        views, asked = zoo.views(drawn[batch.number]), labels[batch.number]
        return _Search(method, views, spec, scale, asked, batch.random).run(start, tell)

    standardised = made(making, several, spec.planes, make, method.steps)
    pictures = None
    if spec.image is not None:
        # what is delivered is what a file of bytes holds, so that every model sees the same
        pictures = (255 * (PIXEL_MEAN + PIXEL_STD * standardised)).round().clamp(0, 255).to(torch.uint8)
        standardised = (pictures.float() / 255 - PIXEL_MEAN) / PIXEL_STD
    members = json.dumps([one.provenance for one in found])
    return Images(
        pixels=delivered(spec, scale.to_model(standardised).numpy()),
        pictures=None if pictures is None else np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy()),
        labels=torch.cat(list(labels.values())).numpy(),
        method=method.name,
        seed=making.seed,
        provenance=describe(method, None, scale) | {"zoo": members} | origin(making, several),
    )


def rate_at(step: int, steps: int) -> float:
    """The share of the rate at a step of so many, counted from 0: a linear warm-up, then half a cosine.

    Source: DeepInversion's public code, whose 100 steps of warm-up are a twentieth here.
    """
    warm_up = round(WARM_UP * steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def _labels(count: int, classes: int, generator: torch.Generator) -> Int64[Tensor, "n"]:
    """Each class as often as any other, up to one, in random order."""
    rounds = -(-count // classes)
    return torch.cat([torch.randperm(classes, generator=generator) for _ in range(rounds)])[:count]


def _entropy(share: float) -> float:
    """Of two labels of which one has this share: the least that their cross entropy can be."""
    return -sum(part * math.log(part) for part in (share, 1 - share) if part > 0)


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """Of one look at a batch. values: of labels, statistics and priors, without weights. floor: what mixed labels cost
    in any case. slope: of their weighted sum, by the images."""

    values: tuple[float, float, float]
    floor: float
    slope: Tensor


class _Search:
    """The search of one batch: all its models look at all its images, in two stages."""

    def __init__(
        self,
        method: DeepInversion,
        views: Sequence[View],
        spec: InputSpec,
        scale: InputRange,
        labels: Int64[Tensor, "n"],
        generator: torch.Generator,
    ) -> None:
        self._method, self._views, self._generator = method, views, generator
        self._device = views[0].network.device
        self._labels = labels.to(self._device)
        self._mixing = method.mixing()
        self._is_image = spec.image is not None
        self._balance = Balance([method.label, method.statistics, method.prior], learned=self._mixing.balance)
        self._fixed = self._balance.weights
        low, high = scale.limits(self._device)
        self._limits = (DARKEST, BRIGHTEST) if self._is_image else (float(low.min()), float(high.max()))

    def run(self, start: Float32[Tensor, "n c h w"], tell: Steps) -> Float32[Tensor, "n c h w"]:
        """The images of the least loss, of those of the last stage; in standardised pixels."""
        images = start.to(self._device).clamp(*self._limits)
        small = self._is_image and min(images.shape[2:]) >= 2 * LEAST_SIDE
        coarse = int(self._method.coarse * self._method.steps) if small else 0
        for steps, half in ((coarse, True), (self._method.steps - coarse, False)):
            if steps:
                images = self._stage(images, steps, half, tell)
        return images.cpu()

    def _stage(self, images: Tensor, steps: int, half: bool, tell: Steps) -> Tensor:
        moved = images.clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=self._method.rate, betas=BETAS)
        least, best = math.inf, images
        for step in range(steps):
            rate = self._method.rate * rate_at(step, steps)
            found = self._losses(moved, half)
            # by weights that stay, for those that are learned change what a loss is worth
            total = sum(weight * value for weight, value in zip(self._fixed, found.values, strict=True))
            total -= self._fixed[0] * found.floor
            if total < least:
                least, best = total, moved.detach().clone()
            moved.grad = found.slope.nan_to_num(0, 0, 0)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            with torch.no_grad():
                moved.clamp_(*self._limits)
            self._balance.learn(found.values, BALANCE_RATE * rate)
            tell(f"loss {total:.4f}")
        return best

    def _losses(self, moved: Tensor, half: bool) -> _Losses:
        """One look at the images. Models one after another, so that the memory is that of one."""
        weights = self._balance.weights
        shown = self._augmented(functional.avg_pool2d(moved, 2) if half else moved)
        prior = prior_loss(shown) if self._is_image else shown.new_zeros(())
        partners = torch.randperm(len(shown), generator=self._generator).to(self._device)
        seen, share = shown, 0.0
        if self._mixing.data and self._is_image:
            seen, share = mixed(shown, partners, draw_box(shown.shape[2], shown.shape[3], self._generator))
        looked_at = seen.detach().requires_grad_()
        slope, labels, statistics = torch.zeros_like(looked_at), 0.0, 0.0
        for view in self._views:
            taps, scores = view(looked_at)
            assert scores is not None
            label = label_loss(scores, self._labels, partners, share)
            error = label.new_zeros(())
            if taps:
                moments = view.network.moments(taps)
                error = statistics_loss(self._method.form, view.network.targets, moments, self._method.first)
            total = (weights[0] * label + weights[1] * error) / len(self._views)
            slope += torch.autograd.grad(total, looked_at)[0]
            labels += float(label.detach()) / len(self._views)
            statistics += float(error.detach()) / len(self._views)
        whole = (seen * slope).sum() + weights[2] * prior
        (gradient,) = torch.autograd.grad(whole, moved)
        apart = float((self._labels != self._labels[partners]).float().mean())
        return _Losses(
            values=(labels, statistics, float(prior.detach())), floor=apart * _entropy(share), slope=gradient
        )

    def _augmented(self, images: Tensor) -> Tensor:
        """Shifted in a circle and mirrored, the same for all of a batch, as DeepInversion does."""
        if not self._is_image:
            return images
        reach = [canvas_extra(side) // 2 for side in images.shape[2:]]
        shifts = [int(torch.randint(-most, most + 1, (), generator=self._generator)) for most in reach]
        flip = bool(torch.randint(2, (), generator=self._generator))
        shifted = images.roll(shifts, (2, 3))
        return shifted.flip(3) if flip else shifted
