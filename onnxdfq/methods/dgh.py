"""DGH: Data Generation for Hardware-friendly post-training quantization (arXiv 2410.22110), Algorithm 1."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.images.dataset import Normalization
from onnxdfq.images.images import Images
from onnxdfq.progress import Progress
from onnxdfq.recipe.choices import Precision
from onnxdfq.synthesis import priors
from onnxdfq.synthesis.hyperparameters import at_least, batch_generators, describe, one_of, positive
from onnxdfq.synthesis.input_range import InputRange, input_range
from onnxdfq.synthesis.losses import STRETCHING, LossForm, statistics_loss, stretching_loss
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.optimizer import FactoredRAdam, Plateau
from onnxdfq.synthesis.statistics import Aggregate, centred_moments


@dataclass(frozen=True, kw_only=True)
class Dgh:
    """Images whose statistics, all images together, are those that the model's BatchNormalizations remember.

    steps: visits to each batch. rate: first step size in standardised pixels; the straight-through clamp makes the
    large one of the public code work. stretching: lambda of Eq. (8), None for what was measured to suit the form.
    slack: delta of Eq. (7), as a share of what the noise that the search starts from deviates by (paper form only).
    aggregate: False fits each batch by itself; image_prior: False leaves out flip, smoothing and crop (the paper's
    ablations, Table 4).
    Raises InputError.

    Differs from Algorithm 1 as the public code does: statistics are those of the forward that the gradient came from,
    not of a second one after the update, which would cost two thirds more time a step and save a quarter of the steps.
    Differs from both: the relative form of the losses (see losses.py), and an optimiser state of half the images' size
    (see optimizer.py).
    """

    steps: int = 250
    batch_size: int = 64
    rate: float = 16.0
    loss_form: LossForm = "relative"
    stretching: float | None = None
    slack: float = 0.1
    aggregate: bool = True
    image_prior: bool = True
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("batch_size", self.batch_size, 1)
        positive("rate", self.rate)
        one_of("loss_form", self.loss_form, STRETCHING)
        one_of("precision", self.precision, ("auto", "float32", "bfloat16"))
        at_least("stretching", self.stretching or 0, 0)
        at_least("slack", self.slack, 0)

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
        """`count` images for a canonical float model with its BatchNormalizations intact; the model is only read.

        Raises NoBatchNorm, ShapeError, UnsupportedOperator, DataError.
        """
        at_least("count", count, 1)
        network = TappedNetwork(model, method="dgh", device=device, precision=self.precision)
        scale = input_range(model, normalization)
        search = _Search(self, network, scale, network.batch_sizes(count, self.batch_size), seed)
        order = torch.Generator().manual_seed(seed)
        batches, done = len(search.sizes), 0
        for _ in range(self.steps):
            for batch in torch.randperm(batches, generator=order).tolist():
                loss = search.visit(batch)
                done += 1
                if progress is not None:
                    progress(done, self.steps * batches, f"loss {loss:.4f}")
        return Images(
            pixels=search.deliver()[:count], method="dgh", seed=seed, provenance=describe(self, network, scale)
        )


class _Search:
    """The state of one synthesis: canvases (the only thing of the size of the image set), moments, schedules."""

    def __init__(self, method: Dgh, network: TappedNetwork, scale: InputRange, sizes: list[int], seed: int) -> None:
        self.sizes = sizes
        self._method, self._network, self._scale = method, network, scale
        channels, *size = network.image_shape
        self._size = (size[0], size[1])
        self._extra = (priors.canvas_extra(size[0]), priors.canvas_extra(size[1])) if method.image_prior else (0, 0)
        self._limits = scale.limits(network.device)
        self._generators = batch_generators(seed, len(sizes))
        # One block for all canvases, so that the finished images can take their place (see `deliver`).
        canvas = (channels, size[0] + self._extra[0], size[1] + self._extra[1])
        self._block = torch.empty(sum(sizes), *canvas, device=network.device)
        self._canvases = torch.split(self._block, sizes)
        for batch, generator in zip(self._canvases, self._generators, strict=True):
            batch.copy_(torch.randn(batch.shape, generator=generator))
        self._pixel_centre = torch.zeros(channels, device=network.device)
        self._optimizers = [FactoredRAdam(batch) for batch in self._canvases]
        patience = max(1, method.steps // 50)
        self._schedules = [Plateau(rate=method.rate, patience=patience) for _ in sizes]
        self._stretching = STRETCHING[method.loss_form] if method.stretching is None else method.stretching
        self._statistics = Aggregate(sizes, len(network.targets.mean) + channels, network.device)
        errors = torch.zeros(2, device=network.device)
        with torch.no_grad():
            for index, batch in enumerate(self._canvases):
                moments, _, error = self._run(self._finalized(batch))
                self._statistics.store(index, moments)
                errors += error.mean(1) / len(sizes)
        self._delta = method.slack * errors[:, None]  # (2, 1): for means, for variances

    def visit(self, index: int) -> float:
        """One step on one batch (Algorithm 1, lines 9 to 16). Returns L_BNS of the whole set as it was before."""
        canvas = self._canvases[index].detach().requires_grad_()
        how = priors.draw(self._generators[index], self._extra)
        if self._method.image_prior:
            image = priors.prepare(canvas, self._size, *self._limits, how)
        else:
            image = priors.clamp_straight_through(canvas, *self._limits)
        moments, outputs, error = self._run(image)
        whole = self._statistics.with_batch(index, moments) if self._method.aggregate else moments
        layers = len(self._network.targets.mean)
        form = self._method.loss_form
        statistics = statistics_loss(form, self._network.targets, whole[:, :layers], whole[:, layers:])
        loss = statistics
        if self._stretching and outputs:
            # L_ODSL is a mean over the whole set (Eq. 7), of which this batch is a share.
            share = self.sizes[index] / sum(self.sizes)
            loss = loss + self._stretching * share * stretching_loss(form, outputs, (error - self._delta).clamp_min(0))
        (grad,) = torch.autograd.grad(loss, canvas)
        self._statistics.store(index, moments)
        schedule = self._schedules[index]
        self._optimizers[index].update(self._canvases[index], grad, schedule.rate)
        schedule.observe(float(loss.detach()))
        return float(statistics.detach())

    def deliver(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """The images in the model's units, (N, C, H, W). Ends the search.

        Written over the canvases from the front, which never reaches a canvas still to be read: a second array would
        double the memory at the very end.
        """
        self._optimizers.clear()
        flat, start = self._block.view(-1), 0
        for canvas in self._canvases:
            images = self._scale.to_model(self._finalized(canvas))
            flat[start : start + images.numel()] = images.flatten()
            start += images.numel()
        return flat[:start].view(-1, *self._network.image_shape).cpu().numpy()

    def _finalized(self, canvas: Tensor) -> Tensor:
        if self._method.image_prior:
            return priors.finalize(canvas, self._size, *self._limits)
        return canvas.clamp(*self._limits)

    def _run(self, standardised: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """z (n, C, H, W) -> moments of all layers and of the pixels (2, S + C), outputs, errors of Eq. (7) (2, n)."""
        targets = self._network.targets
        taps, outputs = self._network.forward(self._scale.to_model(standardised))
        pixels = torch.stack(centred_moments(standardised, self._pixel_centre))
        moments = torch.cat([self._network.moments(taps), pixels], dim=1)
        if self._method.loss_form != "paper":
            return moments, outputs, moments.new_zeros(2, len(standardised))
        mean, square = self._network.image_moments(taps, -1)
        variance = targets.layers(targets.var)[-1]
        error = torch.stack([mean.square().sum(1), (square - mean.square() - variance).square().sum(1)])
        return moments, outputs, error


EFFORTS: dict[str, Dgh] = {
    "fast": Dgh(),
    "standard": Dgh(steps=500),
    "paper": Dgh(steps=1000),
}
