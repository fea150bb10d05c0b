"""The search of DGH (arXiv 2410.22110, Algorithm 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.images.images import Images
from onnxdfq.images.merging import SHARDS
from onnxdfq.methods.batches import Batch, batches, origin
from onnxdfq.methods.dgh.dgh import Dgh
from onnxdfq.methods.method import Making
from onnxdfq.progress import Steps
from onnxdfq.synthesis import priors
from onnxdfq.synthesis.hyperparameters import delivered, describe
from onnxdfq.synthesis.input_range import InputRange, input_range
from onnxdfq.synthesis.losses import STRETCHING, statistics_loss, stretching_loss
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.optimizer import FactoredRAdam, Plateau
from onnxdfq.synthesis.start import starting_images
from onnxdfq.synthesis.statistics import Aggregate, centred_moments
from onnxdfq.work.checkpoint import shared


def synthesize(method: Dgh, model: ir.Model, making: Making) -> Images:
    """See `Dgh.make`."""
    network = TappedNetwork(model, method="dgh", device=making.device, precision=method.precision)
    scale = input_range(model, making.normalization)
    several = batches(making, network.batch_sizes(making.count, method.batch_size))
    search = _Search(method, network, scale, several, making)
    order = torch.Generator().manual_seed(making.seed)
    rounds, workers, checkpoint = 0, making.workers, making.checkpoint
    if (saved := shared(checkpoint, workers)) is not None:
        rounds = int(saved.facts["rounds"])
        search.restore(saved.tensors, saved.facts["schedules"])
        order.set_state(saved.tensors["order"])
    tell = Steps(making.progress, method.steps * len(several))
    tell.reach(rounds * len(several))
    for number in range(rounds + 1, method.steps + 1):
        for batch in torch.randperm(len(several), generator=order).tolist():
            tell(f"loss {search.visit(batch):.4f}")
        if workers.share(checkpoint is not None and checkpoint.due):
            search.collect()
            if checkpoint is not None:
                tensors = search.tensors() | {"order": order.get_state()}
                checkpoint.save(tensors, {"rounds": number, "schedules": search.schedules()})
    search.collect()
    first = several[0].first
    pixels = delivered(network.spec, search.deliver()[: making.count - first])
    provenance = describe(method, network, scale) | origin(making, several)
    if not making.shard.is_whole:
        provenance |= {SHARDS: str(making.shard.count)}  # which stays when they are merged
    return Images(pixels=pixels, method="dgh", seed=making.seed, provenance=provenance)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Look:
    """What a network says of a slice of a batch. canvas: that the gradient is of. moments: (2, S + C). stretching: its
    share of L_ODSL, with its weight. error: of Eq. (7), (2, n)."""

    canvas: Tensor
    moments: Tensor
    stretching: Tensor
    error: Tensor

    def numbers(self) -> Tensor:
        """All that others need to know of it, in one vector."""
        return torch.cat([self.moments.flatten(), self.stretching[None], self.error.sum(1)]).detach()


class _Search:
    """The state of one synthesis: canvases (the only thing of the size of the image set), moments, schedules.

    A batch is looked at slice by slice, and what the slices say is added in their order: of several workers each looks
    at its own slices, and all come to the same sums. Each keeps the canvases and optimizers of all; only those of its
    own slices move, until `collect`.
    """

    def __init__(
        self, method: Dgh, network: TappedNetwork, scale: InputRange, several: Sequence[Batch], making: Making
    ) -> None:
        self._method, self._network, self._scale, self._workers = method, network, scale, making.workers
        self._sizes = sizes = [batch.size for batch in several]
        channels, *size = network.planes
        self._size = (size[0], size[1])
        self._image_prior = method.image_prior and network.spec.image is not None
        self._extra = (priors.canvas_extra(size[0]), priors.canvas_extra(size[1])) if self._image_prior else (0, 0)
        self._limits = scale.limits(network.device)
        self._generators = [batch.random for batch in several]
        # One block for all canvases, so that the finished images can take their place (see `deliver`).
        canvas = (channels, size[0] + self._extra[0], size[1] + self._extra[1])
        self._block = torch.empty(sum(sizes), *canvas, device=network.device)
        self._canvases = torch.split(self._block, sizes)
        for batch, own in zip(several, self._canvases, strict=True):
            shape = tuple(own.shape)
            own.copy_(starting_images(network.spec, shape, seed=making.seed, first=batch.first, generator=batch.random))
        slices = 1 if network.has_fixed_batch else method.slices
        self._slices = [own.tensor_split(min(slices, len(own))) for own in self._canvases]
        self._pixel_centre = torch.zeros(channels, device=network.device)
        self._optimizers = [[FactoredRAdam(part) for part in own] for own in self._slices]
        patience = max(1, method.steps // 50)
        self._schedules = [Plateau(rate=method.rate, patience=patience) for _ in sizes]
        self._stretching = STRETCHING[method.loss_form] if method.stretching is None else method.stretching
        self._statistics = Aggregate(sizes, len(network.targets.mean) + channels, network.device)
        self._delta = errors = torch.zeros(2, 1, device=network.device)
        with torch.no_grad():
            for index in range(len(sizes)):
                looks = [self._look(index, part, self._finalized(part)) for part in self._own(index)]
                moments, _, error = self._gathered(index, looks)
                self._statistics.store(index, moments)
                errors += error[:, None] / sizes[index] / len(sizes)
        self._delta = method.slack * errors  # for means, for variances

    def visit(self, index: int) -> float:
        """One step on one batch (Algorithm 1, lines 9 to 16). Returns L_BNS of the whole set as it was before."""
        how = priors.draw(self._generators[index], self._extra)
        looks = [self._look(index, canvas, self._shown(canvas, how)) for canvas in self._leaves(index)]
        moments, stretching, _ = self._gathered(index, looks)
        moments.requires_grad_()
        whole = self._statistics.with_batch(index, moments) if self._method.aggregate else moments
        layers = len(self._network.targets.mean)
        form = self._method.loss_form
        statistics = statistics_loss(form, self._network.targets, whole[:, :layers], whole[:, layers:])
        (slope,) = torch.autograd.grad(statistics, moments)
        self._statistics.store(index, moments)
        schedule = self._schedules[index]
        optimizers = self._optimizers[index][self._workers.rank :: self._workers.size]
        for look, canvas, optimizer in zip(looks, self._own(index), optimizers, strict=True):
            share = len(canvas) / self._sizes[index]
            (grad,) = torch.autograd.grad((share * slope * look.moments).sum() + look.stretching, look.canvas)
            # Behind channels that are all zero, or numbers that hardly fit float32: there images stay as they are.
            grad = torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
            optimizer.update(canvas, grad, schedule.rate)
        schedule.observe(float(statistics.detach() + stretching))
        return float(statistics.detach())

    def collect(self) -> None:
        """From now on each worker has the canvases and optimizers of all."""
        if self._workers.size == 1:
            return
        for slices, optimizers in zip(self._slices, self._optimizers, strict=True):
            for place, (canvas, optimizer) in enumerate(zip(slices, optimizers, strict=True)):
                owner = place % self._workers.size
                found = self._workers.share_tensors({"canvas": canvas, **optimizer.tensors()}, by=owner)
                canvas.copy_(found.pop("canvas"))
                optimizer.restore(found)

    def _own(self, index: int) -> Sequence[Tensor]:
        """Of one batch, the slices that this worker looks at."""
        return self._slices[index][self._workers.rank :: self._workers.size]

    def _leaves(self, index: int) -> list[Tensor]:
        return [canvas.detach().requires_grad_() for canvas in self._own(index)]

    def _shown(self, canvas: Tensor, how: priors.Draw) -> Tensor:
        if self._image_prior:
            return priors.prepare(canvas, self._size, *self._limits, how)
        return priors.clamp_straight_through(canvas, *self._limits)

    def _gathered(self, index: int, looks: Sequence[_Look]) -> tuple[Tensor, Tensor, Tensor]:
        """Of one batch, from what all workers saw of it: moments (2, S + C), L_ODSL, and sums of errors (2,)."""
        own = torch.stack([look.numbers() for look in looks]) if looks else None
        found = self._workers.gather(own)
        size, slices = self._workers.size, self._slices[index]
        rows = []
        for place in range(len(slices)):
            part = found[place % size]
            assert part is not None  # each slice is somebody's
            rows.append(part[place // size].to(self._block.device))
        numbers = torch.stack(rows)
        shares = torch.tensor([[len(canvas) / self._sizes[index]] for canvas in slices], device=numbers.device)
        moments = (shares * numbers[:, :-3]).sum(0)
        return moments.view(2, -1), numbers[:, -3].sum(), numbers[:, -2:].sum(0)

    def tensors(self) -> dict[str, Tensor]:
        """All that a visit changes, but for the schedules."""
        found = {"canvases": self._block, **self._statistics.tensors()}
        for index, (optimizers, generator) in enumerate(zip(self._optimizers, self._generators, strict=True)):
            for place, optimizer in enumerate(optimizers):
                found |= {f"{index}/{place}/{name}": tensor for name, tensor in optimizer.tensors().items()}
            found[f"{index}/random"] = generator.get_state()
        return found

    def schedules(self) -> list[list[float]]:
        """Where the rates of all batches are."""
        return [schedule.state() for schedule in self._schedules]

    def restore(self, tensors: Mapping[str, Tensor], schedules: Sequence[Sequence[float]]) -> None:
        """Go on from what `tensors` and `schedules` gave."""
        self._block.copy_(tensors["canvases"])
        self._statistics.restore(tensors)
        for index, (optimizers, generator) in enumerate(zip(self._optimizers, self._generators, strict=True)):
            for place, optimizer in enumerate(optimizers):
                optimizer.restore({name: tensors[f"{index}/{place}/{name}"] for name in optimizer.tensors()})
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

    def _look(self, index: int, canvas: Tensor, standardised: Tensor) -> _Look:
        """A slice of one batch, z (n, C, H, W) of its canvas."""
        targets, form = self._network.targets, self._method.loss_form
        taps, outputs = self._network.forward(self._network.given(self._scale.to_model(standardised)))
        pixels = torch.stack(centred_moments(standardised, self._pixel_centre))
        moments = torch.cat([self._network.moments(taps), pixels], dim=1)
        error = moments.new_zeros(2, len(standardised))
        if form == "paper":
            mean, square = self._network.image_moments(taps, -1)
            variance = targets.layers(targets.var)[-1]
            error = torch.stack([mean.square().sum(1), (square - mean.square() - variance).square().sum(1)])
        stretching = moments.new_zeros(())
        if self._stretching and outputs:
            # L_ODSL is a mean over the whole set (Eq. 7), of which this slice is a share.
            share = len(canvas) / sum(self._sizes)
            slack = (error - self._delta).clamp_min(0)
            stretching = self._stretching * share * stretching_loss(form, outputs, slack)
        return _Look(canvas=canvas, moments=moments, stretching=stretching, error=error)
