"""The search of DGH (arXiv 2410.22110, Algorithm 1)."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.images.images import Images
from onnxdfq.methods.dgh.dgh import Dgh
from onnxdfq.methods.method import Making
from onnxdfq.progress import Steps
from onnxdfq.synthesis import priors
from onnxdfq.synthesis.hyperparameters import batch_generators, delivered, describe
from onnxdfq.synthesis.input_range import InputRange, input_range
from onnxdfq.synthesis.losses import STRETCHING, statistics_loss, stretching_loss
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.optimizer import FactoredRAdam, Plateau
from onnxdfq.synthesis.start import starting_images
from onnxdfq.synthesis.statistics import Aggregate, centred_moments


def synthesize(method: Dgh, model: ir.Model, making: Making) -> Images:
    """See `Dgh.make`."""
    network = TappedNetwork(model, method="dgh", device=making.device, precision=method.precision)
    scale = input_range(model, making.normalization)
    sizes = network.batch_sizes(making.count, method.batch_size)
    search = _Search(method, network, scale, sizes, making.seed)
    order = torch.Generator().manual_seed(making.seed)
    batches, rounds = len(search.sizes), 0
    checkpoint = making.checkpoint
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        rounds = int(saved.facts["rounds"])
        search.restore(saved.tensors, saved.facts["schedules"])
        order.set_state(saved.tensors["order"])
    tell = Steps(making.progress, method.steps * batches)
    tell.reach(rounds * batches)
    for number in range(rounds + 1, method.steps + 1):
        for batch in torch.randperm(batches, generator=order).tolist():
            tell(f"loss {search.visit(batch):.4f}")
        if checkpoint is not None and checkpoint.due:
            tensors = search.tensors() | {"order": order.get_state()}
            checkpoint.save(tensors, {"rounds": number, "schedules": search.schedules()})
    pixels = delivered(network.spec, search.deliver()[: making.count])
    return Images(pixels=pixels, method="dgh", seed=making.seed, provenance=describe(method, network, scale))


class _Search:
    """The state of one synthesis: canvases (the only thing of the size of the image set), moments, schedules."""

    def __init__(self, method: Dgh, network: TappedNetwork, scale: InputRange, sizes: list[int], seed: int) -> None:
        self.sizes = sizes
        self._method, self._network, self._scale = method, network, scale
        channels, *size = network.planes
        self._size = (size[0], size[1])
        self._image_prior = method.image_prior and network.spec.image is not None
        self._extra = (priors.canvas_extra(size[0]), priors.canvas_extra(size[1])) if self._image_prior else (0, 0)
        self._limits = scale.limits(network.device)
        self._generators = batch_generators(seed, len(sizes))
        # One block for all canvases, so that the finished images can take their place (see `deliver`).
        canvas = (channels, size[0] + self._extra[0], size[1] + self._extra[1])
        self._block = torch.empty(sum(sizes), *canvas, device=network.device)
        self._canvases = torch.split(self._block, sizes)
        first = 0
        for batch, generator in zip(self._canvases, self._generators, strict=True):
            batch.copy_(starting_images(network.spec, tuple(batch.shape), seed=seed, first=first, generator=generator))
            first += len(batch)
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
        if self._image_prior:
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
        # Behind channels that are all zero, or numbers that hardly fit float32: there images stay as they are.
        grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
        self._statistics.store(index, moments)
        schedule = self._schedules[index]
        self._optimizers[index].update(self._canvases[index], grad, schedule.rate)
        schedule.observe(float(loss.detach()))
        return float(statistics.detach())

    def tensors(self) -> dict[str, Tensor]:
        """All that a visit changes, but for the schedules."""
        found = {"canvases": self._block, **self._statistics.tensors()}
        for index, (optimizer, generator) in enumerate(zip(self._optimizers, self._generators, strict=True)):
            found |= {f"{index}/{name}": tensor for name, tensor in optimizer.tensors().items()}
            found[f"{index}/random"] = generator.get_state()
        return found

    def schedules(self) -> list[list[float]]:
        """Where the rates of all batches are."""
        return [schedule.state() for schedule in self._schedules]

    def restore(self, tensors: Mapping[str, Tensor], schedules: Sequence[Sequence[float]]) -> None:
        """Go on from what `tensors` and `schedules` gave."""
        self._block.copy_(tensors["canvases"])
        self._statistics.restore(tensors)
        for index, (optimizer, generator) in enumerate(zip(self._optimizers, self._generators, strict=True)):
            optimizer.restore({name: tensors[f"{index}/{name}"] for name in optimizer.tensors()})
            generator.set_state(tensors[f"{index}/random"])
        for schedule, state in zip(self._schedules, schedules, strict=True):
            schedule.restore(state)

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
        return flat[:start].view(-1, *self._network.planes).cpu().numpy()

    def _finalized(self, canvas: Tensor) -> Tensor:
        if self._image_prior:
            return priors.finalize(canvas, self._size, *self._limits)
        return canvas.clamp(*self._limits)

    def _run(self, standardised: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """z (n, C, H, W) -> moments of all layers and of the pixels (2, S + C), outputs, errors of Eq. (7) (2, n)."""
        targets = self._network.targets
        taps, outputs = self._network.forward(self._network.given(self._scale.to_model(standardised)))
        pixels = torch.stack(centred_moments(standardised, self._pixel_centre))
        moments = torch.cat([self._network.moments(taps), pixels], dim=1)
        if self._method.loss_form != "paper":
            return moments, outputs, moments.new_zeros(2, len(standardised))
        mean, square = self._network.image_moments(taps, -1)
        variance = targets.layers(targets.var)[-1]
        error = torch.stack([mean.square().sum(1), (square - mean.square() - variance).square().sum(1)])
        return moments, outputs, error
