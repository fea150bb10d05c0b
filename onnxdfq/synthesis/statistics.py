"""Per-channel statistics of what enters each BatchNormalization, and their aggregation over a whole image set.

Every moment here is *centred at the running mean* mu_l of its layer: first = E[x - mu_l], second = E[(x - mu_l)^2].
The error of the mean is then `first` itself and the variance `second - first^2` does not cancel when |mu_l| is large
against the spread (inputs of 0..255, bfloat16 activations). The layers lie side by side in one vector of S = sum C_l
channels, so that a loss over 100 layers costs a handful of small operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

VARIANCE_FLOOR = 1e-6  # under the root, as in the public implementation: the gradient of a dead channel stays finite


class _CentredMoments(torch.autograd.Function):
    """x (N, C, *), centre (C,) -> E[x - c], E[(x - c)^2] over all axes but the channels, float32, each (C,).

    Autograd's own formula keeps two full-size float32 intermediates and reads memory three times more on the way back;
    here the backward is x's own affine map: dx = (g1 + 2 g2 (x - c)) / n.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Float[Tensor, "n c ..."], centre: Float32[Tensor, "c"]
    ) -> tuple[Float32[Tensor, "c"], Float32[Tensor, "c"]]:
        ctx.save_for_backward(x, centre)
        # The kernel that BatchNormalization trains with: two reads of x, float32 sums, nothing of x's size written.
        unused = torch.zeros(2, len(centre), device=x.device)
        mean, variance = torch.batch_norm_update_stats(_with_positions(x), unused[0], unused[1], 0.0)
        first = mean - centre
        return first, variance + first.square()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        x, centre = ctx.saved_tensors  # type: ignore[attr-defined]
        count = x.numel() // len(centre)
        # The affine map by BatchNormalization's kernel: broadcasting over channels-last rows is slow on the CPU.
        # In x's own type: the incoming gradient that this is added to has no more digits either.
        grad = functional.batch_norm(
            _with_positions(x), centre, torch.ones_like(centre), grads[1] * (2.0 / count), grads[0] / count, eps=0.0
        )
        return grad.view_as(x), None


def _with_positions(x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c _ ..."]:
    """(N, C, *) -> (N, C, 1 or more...)"""
    return x if x.dim() > 2 else x[..., None]


def centred_moments(
    x: Float[Tensor, "n c ..."], centre: Float32[Tensor, "c"]
) -> tuple[Float32[Tensor, "c"], Float32[Tensor, "c"]]:
    """First and second moment of x about the centre, over batch and space."""
    first, second = _CentredMoments.apply(x, centre)  # type: ignore[no-untyped-call]
    return first, second


def image_moments(
    x: Float[Tensor, "n c ..."], centre: Float32[Tensor, "c"]
) -> tuple[Float32[Tensor, "n c"], Float32[Tensor, "n c"]]:
    """The same for each image by itself."""
    shifted = x.flatten(2).float() - centre[:, None] if x.dim() > 2 else x.float()[..., None] - centre[:, None]
    return shifted.mean(2), shifted.square().mean(2)


def spread(
    first: Float32[Tensor, "*shape"], second: Float32[Tensor, "*shape"], unit: Float32[Tensor, "*shape"] | float = 1.0
) -> Float32[Tensor, "*shape"]:
    """Standard deviation from centred moments; at least 1e-3 of the root of `unit`, a variance."""
    return (second - first.square()).clamp_min(0).add(VARIANCE_FLOOR * unit).sqrt()


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The running statistics of L layers side by side, which images are to have.

    All tensors on one device, S = sum of C_l.
    """

    channels: tuple[int, ...]  # C_l
    mean: Float32[Tensor, "s"]
    var: Float32[Tensor, "s"]
    std: Float32[Tensor, "s"]  # sqrt(var), without epsilon
    # what errors are relative to: var, but at least 1e-2 of its layer's mean: no dead channel rules
    scale: Float32[Tensor, "s"]
    # 1 / (L C_l): weights that turn a sum over S into a mean over layers of means over channels
    layer_mean: Float32[Tensor, "s"]

    @classmethod
    def of(cls, means: Sequence[Float32[Tensor, "_"]], variances: Sequence[Float32[Tensor, "_"]]) -> "Targets":
        """From the running means and variances of the layers."""
        channels = tuple(len(mean) for mean in means)
        weights = [torch.full_like(mean, 1.0 / (len(means) * len(mean))) for mean in means]
        nothing = [torch.zeros(0)]  # a network without
        var = torch.cat(list(variances) or nothing).clamp_min(0)
        floors = [variance.mean().mul(1e-2).clamp_min(1e-12).expand_as(variance) for variance in variances]
        return cls(
            channels=channels,
            mean=torch.cat(list(means) or nothing),
            var=var,
            std=var.sqrt(),
            scale=var.maximum(torch.cat(floors or nothing)),
            layer_mean=torch.cat(weights or nothing),
        )

    def layers(self, channels: Float32[Tensor, "s"]) -> tuple[Float32[Tensor, "_"], ...]:
        """A vector over all channels (S,) layer by layer, each (C_l,)."""
        return torch.split(channels, list(self.channels))

    def distance(self, first: Float32[Tensor, "s"], second: Float32[Tensor, "s"]) -> Float32[Tensor, ""]:
        """Mean over layers of the mean over channels of ((mu - mu_l)^2 + (s - s_l)^2) / s_l^2: no unit, 0 is perfect.

        s_l^2 is floored, see `scale`.
        """
        return torch.sum(self.layer_mean * self._errors(first, second))

    def distances(self, first: Float32[Tensor, "s"], second: Float32[Tensor, "s"]) -> tuple[float, ...]:
        """The same layer by layer: `distance` is their mean."""
        return tuple(float(layer.mean()) for layer in self.layers(self._errors(first, second)))

    def _errors(self, first: Float32[Tensor, "s"], second: Float32[Tensor, "s"]) -> Float32[Tensor, "s"]:
        error = first.square() + (spread(first, second, self.scale) - self.std).square()
        return error / self.scale


class Aggregate:
    """Moments of a whole image set, batch by batch (arXiv 2410.22110, §5.1, Eq. 5), in memory that holds no images.

    Keeps each batch's own moments (detached, 2 S floats) and their running sum, weighted by the share of images in the
    batch, so that a smaller last batch counts for what it is. `with_batch` replaces the old contribution of one batch:
    the result is exact for the set, and only the batch at hand carries gradient.
    """

    def __init__(self, sizes: Sequence[int], channels: int, device: torch.device) -> None:
        self._share = [size / sum(sizes) for size in sizes]
        self._batches = torch.zeros(len(sizes), 2, channels, device=device)
        self._sum = torch.zeros(2, channels, dtype=torch.float64, device=device)  # float64: replaced thousands of times

    def store(self, batch: int, moments: Float32[Tensor, "2 s"]) -> None:
        """Replace the moments of one batch by these."""
        moments = moments.detach()
        self._sum += self._share[batch] * (moments - self._batches[batch]).double()
        self._batches[batch] = moments

    def with_batch(self, batch: int, moments: Float32[Tensor, "2 s"]) -> Float32[Tensor, "2 s"]:
        """Moments of the whole set with this batch's taken as given, gradient through them only."""
        share = self._share[batch]
        rest = self._sum - share * self._batches[batch].double()
        return rest.float() + share * moments

    def total(self) -> Float32[Tensor, "2 s"]:
        """Moments of the whole set."""
        return self._sum.float()

    def tensors(self) -> dict[str, Tensor]:
        """What it keeps."""
        return {"batches": self._batches, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep what `tensors` gave."""
        self._batches.copy_(tensors["batches"])
        self._sum.copy_(tensors["sum"])
