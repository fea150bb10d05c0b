"""PSAQ-ViT (arXiv 2203.02250): images whose patches a vision transformer tells from one another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import BATCH, RATE, STEPS, WEIGHT, Bounds, check_bounds
from onnxdfq.methods.method import Making, Need, Synthesis

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor

    from onnxdfq.images.images import Images
    from onnxdfq.methods.batches import Batch
    from onnxdfq.progress import Steps
    from onnxdfq.synthesis.attention import AttendingNetwork
    from onnxdfq.synthesis.input_range import InputRange
    from onnxdfq.synthesis.stretched import Stretching

BETAS = (0.5, 0.9)  # of Adam
ROUNDS, WARM_UP = 2, 0.2  # each with a schedule of its own, of whose steps this share warms up
JITTER = 15 / 224  # of the side, in the first round; twice as much in the second
VARIATION = (2500.0, 3000.0)  # what is wanted is drawn from between these
STRETCHING_RATE = 0.03  # as of dead leaves


@dataclass(frozen=True, kw_only=True)
class Psaq(Synthesis):
    """Images whose patches differ, in what each attention gives of them, as those of photographs do, each image of a
    class drawn at random.

    steps: for each batch, one batch after another, half in each of two rounds. rate: of Adam, in standardised pixels.
    classes: weight of the cross-entropy with the drawn labels, where the output is a score for each class. smoothness:
    weight of the distance from a drawn total variation; the entropy of patch similarities (Eq. 8) has weight 1, in each
    layer. attention: weight of the distance of later attentions from spots drawn at random (SARDFQ); 0 leaves it out.
    stretching: steps at the end by which the model's outputs come to range wider, as those of dead leaves do; 0 for
    none, as published. Raises InputError.

    As the public code: two rounds with a linear warm-up of a fifth and a cosine, the same jitter along both axes, one
    flip for the batch, a clamp after each step. Differs from it: jitter is a share of the side (15 and 30 of 224), and
    total variation is that of as many numbers as 32 images of 224×224 have, both so that other sizes are treated alike;
    leading tokens are left out where the others make a square, not always one; there are more images than one batch
    of 32; fewer steps are taken but for `paper`; the start is dead leaves, not Gaussian pixels; and the stretching,
    without which grids are too narrow for inputs that range wider than these images.
    """

    name: ClassVar[str] = "psaq"
    summary: ClassVar[str] = "images whose patches a vision transformer tells from one another (PSAQ-ViT)"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.ATTENTION})
    priority: ClassVar[int] = 15
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {"standard": {"steps": 120}, "paper": {"steps": 1000}}

    steps: Annotated[int, STEPS] = 60
    batch_size: Annotated[int, BATCH] = 32
    rate: Annotated[float, RATE] = 0.2
    classes: Annotated[float, WEIGHT] = 1.0
    smoothness: Annotated[float, WEIGHT] = 0.05
    attention: Annotated[float, WEIGHT] = 0.0
    stretching: Annotated[int, Bounds(least=0, most=STEPS.most)] = 10

    def __post_init__(self) -> None:
        check_bounds(self)

    def make(self, model: ir.Model, making: Making) -> Images:
        """See `Synthesis.make`; needs attention, and no BatchNormalization.

        Raises:
            NoAttention: The model does not attend, or takes no picture.
        """
        from onnxdfq.images.images import Images
        from onnxdfq.methods.batches import batches, made, origin
        from onnxdfq.synthesis.attention import AttendingNetwork
        from onnxdfq.synthesis.hyperparameters import delivered, describe
        from onnxdfq.synthesis.input_range import input_range
        from onnxdfq.synthesis.network import batch_sizes
        from onnxdfq.synthesis.start import starting_images
        from onnxdfq.synthesis.stretched import Stretching

        network = AttendingNetwork(model, method=self.name, device=making.device)
        scale, spec = input_range(model, making.normalization), network.spec
        stretching = Stretching(model, scale, making.device)

        def make(batch: Batch, tell: Steps) -> Tensor:
            shape = (batch.size, *spec.planes)
            start = starting_images(spec, shape, seed=making.seed, first=batch.first, generator=batch.random)
            return scale.to_model(self._search(network, scale, stretching, start, batch.random, tell))

        several = batches(making, batch_sizes(making.count, self.batch_size, network.batch))
        pixels = made(making, several, spec.planes, make, self.steps + self.stretching)
        found = delivered(spec, pixels.numpy())
        return Images(
            pixels=found,
            method=self.name,
            seed=making.seed,
            provenance=describe(self, None, scale) | origin(making, several),
        )

    def _search(
        self,
        network: AttendingNetwork,
        scale: InputRange,
        stretching: Stretching,
        start: Tensor,
        generator: torch.Generator,
        tell: Steps,
    ) -> Tensor:
        """One batch (N, C, H, W) in standardised pixels, from its start to its end."""
        import torch
        from torch.nn.functional import cross_entropy

        from onnxdfq.synthesis.attention import patch_entropy
        from onnxdfq.synthesis.attention_prior import AttentionPrior
        from onnxdfq.synthesis.priors import total_variation

        low, high = scale.limits(network.device)
        images = start.to(network.device).clamp(low, high).requires_grad_()
        optimizer = torch.optim.Adam([images], lr=self.rate, betas=BETAS)
        wanted = VARIATION[0] + (VARIATION[1] - VARIATION[0]) * float(torch.rand((), generator=generator))
        labels: Tensor | None = None
        prior = AttentionPrior(generator)
        for step in range(self.steps):
            part, factor = schedule(step, self.steps)
            optimizer.param_groups[0]["lr"] = self.rate * factor
            moved = _jittered(images, (part + 1) * JITTER, generator)
            features, weights, logits = network.forward(scale.to_model(moved))
            loss = self.smoothness * (total_variation(moved) - wanted).abs()
            for attended in features:
                loss = loss - patch_entropy(attended, len(images))
            if self.attention:
                loss = loss + self.attention * prior.loss(weights, len(images))
            if logits is not None:
                if labels is None:
                    labels = torch.randint(logits.shape[1], (len(images),), generator=generator).to(logits.device)
                loss = loss + self.classes * cross_entropy(logits, labels)
            (grad,) = torch.autograd.grad(loss, images)
            images.grad = grad.nan_to_num(0, 0, 0)  # similarities of patches that are all zero have no slope
            optimizer.step()
            with torch.no_grad():
                images.clamp_(low, high)
            tell(f"loss {float(loss.detach()):.4f}")
        found = images.detach().cpu()
        return stretching(found, steps=self.stretching, rate=STRETCHING_RATE, generator=generator, tell=tell)


def schedule(step: int, steps: int) -> tuple[int, float]:
    """The round that a step is in, from 0, and its factor of the rate: linear warm-up, then half a cosine."""
    first = steps // ROUNDS
    part, length, place = (0, first, step) if step < first else (1, steps - first, step - first)
    warm_up = int(WARM_UP * length)
    if place < warm_up:
        return part, (place + 1) / warm_up
    return part, 0.5 * (1 + math.cos(math.pi * (place - warm_up) / (length - warm_up)))


def _jittered(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Rolled by up to this share of the side, by as much along both axes, and mirrored or not: the whole batch."""
    import torch

    most = round(share * max(images.shape[2:]))
    offset = int(torch.randint(-most, most + 1, (), generator=generator))
    moved = images.roll((offset, offset), dims=(2, 3))
    return moved.flip(3) if bool(torch.randint(2, (), generator=generator)) else moved
