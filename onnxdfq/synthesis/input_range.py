"""From standardised pixel units z (mean 0, deviation 1 over natural images) to what a model takes: x = mean + std z.

A search in z has the same step sizes for a model of standardised pixels, of 0..1 and of 0..255. With the user's
normalization the scale is known; without it, it is read off the first BatchNormalization that an affine map separates
from the image (as a rule: the first convolution lies between), whose running statistics are those of filtered images.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import DataError
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import Filling, InputSpec, fillings, given_by_user, main_input
from onnxdfq.synthesis.network import as_input
from passes.graph.batch_norm import BatchNormStats, read_batch_norms

ASSUMED = "assumed standardised"
"""The source of a range that nothing tells."""
PIXEL_MEAN, PIXEL_STD = 0.45, 0.25  # of natural images, on the scale 0..1
LOWEST, HIGHEST = -2.2, 2.6  # z: where images whose true range is unknown are clamped
DARKEST, BRIGHTEST = -PIXEL_MEAN / PIXEL_STD, (1 - PIXEL_MEAN) / PIXEL_STD  # z: where a byte ends
SIGNAL_LIMIT = 4.0  # z: of what is no image
NEIGHBOUR_CORRELATION, CHANNEL_CORRELATION = 0.95, 0.9  # of natural images
SURROGATE_PIXELS = 2**17  # drawn in all: neighbours agree, so a small image counts for little more than one number


@dataclass(frozen=True, kw_only=True)
class InputRange:
    """The map from standardised pixels z to a model's units, and where images are clamped.

    mean, std: in the model's units. low, high: in z. source: where these numbers come from.
    """

    mean: Float32[NDArray[np.float32], "c"]
    std: Float32[NDArray[np.float32], "c"]
    low: Float32[NDArray[np.float32], "c"]
    high: Float32[NDArray[np.float32], "c"]
    source: str

    def limits(self, device: torch.device) -> tuple[Float32[Tensor, "c 1 1"], Float32[Tensor, "c 1 1"]]:
        """low and high on a device."""
        return tuple(torch.from_numpy(limit).to(device)[:, None, None] for limit in (self.low, self.high))  # type: ignore[return-value]

    def standardised(self, samples: Float32[NDArray[np.float32], "n c h w"]) -> Float32[NDArray[np.float32], "n c h w"]:
        """x -> z."""
        return (samples - self.mean[:, None, None]) / self.std[:, None, None]

    def to_model(self, standardised: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n c h w"]:
        """z -> x."""
        mean, std = (torch.from_numpy(part).to(standardised.device)[:, None, None] for part in (self.mean, self.std))
        return mean + std * standardised


def input_range(model: ir.Model, normalization: Normalization | None) -> InputRange:
    """The range of a model's main input: by the user's normalization, else estimated, else mean 0 and deviation 1.

    Args:
        model: Float, its BatchNormalizations intact.
        normalization: The user's, None where there is none.

    Raises:
        ShapeError: The sizes of the main input are not known.
        DataError: The normalization has another number of channels than the model.
    """
    spec = main_input(model)
    channels = spec.planes[0]
    given = fillings(model)[spec.name]
    if given.kind in ("normal", "uniform") and spec.name in given_by_user(model):
        return _from_filling(given, spec)
    if spec.is_bytes or (normalization is not None and spec.image is not None):
        return other_range(spec, normalization)
    low, high = _usual_limits(spec)
    for stats in read_batch_norms(model)[:3]:  # an affine prefix ends at the first activation
        if (estimate := _estimate(model, stats)) is not None:
            mean, std = estimate
            return _input_range(mean, np.full(channels, std), low, high, f"estimated from {stats.node}")
    return other_range(spec, None)


def other_range(spec: InputSpec, normalization: Normalization | None) -> InputRange:
    """The range of an input by its type and the user's normalization alone, else mean 0 and deviation 1.

    Raises:
        DataError: The normalization has another number of channels than the input.
    """
    channels = spec.planes[0]
    if spec.is_bytes:
        mean, std = np.full(channels, 255 * PIXEL_MEAN), np.full(channels, 255 * PIXEL_STD)
        return _input_range(mean, std, DARKEST, BRIGHTEST, "bytes")
    if normalization is not None and spec.image is not None:
        return _from_normalization(normalization, channels)
    return _input_range(np.zeros(channels), np.ones(channels), *_usual_limits(spec), ASSUMED)


def _usual_limits(spec: InputSpec) -> tuple[float, float]:
    return (LOWEST, HIGHEST) if spec.image is not None else (-SIGNAL_LIMIT, SIGNAL_LIMIT)


def _from_filling(given: Filling, spec: InputSpec) -> InputRange:
    """What `--input` says of an input: of pixels, the values of black and white; of other numbers, what it says."""
    channels, (first, second) = spec.planes[0], given.numbers
    if given.kind == "normal":
        mean, std, (low, high) = first, second, (-SIGNAL_LIMIT, SIGNAL_LIMIT)
    elif spec.image is not None:
        mean, std = first + PIXEL_MEAN * (second - first), PIXEL_STD * (second - first)
        low, high = DARKEST, BRIGHTEST
    else:
        mean, std = (first + second) / 2, (second - first) / 12**0.5
        low, high = -(3**0.5), 3**0.5
    return _input_range(np.full(channels, mean), np.full(channels, std), low, high, f"--input {given}")


def _from_normalization(normalization: Normalization, channels: int) -> InputRange:
    for numbers in (normalization.mean, normalization.std):
        if len(numbers) not in (1, channels):
            raise DataError(f"the normalization has {len(numbers)} channels, the model's image input has {channels}")
    mean = np.broadcast_to(np.asarray(normalization.mean), channels)
    std = np.broadcast_to(np.asarray(normalization.std), channels)
    return _input_range((PIXEL_MEAN - mean) / std, PIXEL_STD / std, DARKEST, BRIGHTEST, "normalization")


def _input_range(
    mean: Float[NDArray[np.floating], "c"], std: Float[NDArray[np.floating], "c"], low: float, high: float, source: str
) -> InputRange:
    def whole(value: float) -> NDArray[np.float32]:
        return np.full(len(mean), value, dtype=np.float32)

    return InputRange(
        mean=mean.astype(np.float32), std=std.astype(np.float32), low=whole(low), high=whole(high), source=source
    )


def _estimate(model: ir.Model, stats: BatchNormStats) -> tuple[Float64[NDArray[np.float64], "c"], float] | None:
    """Mean and common deviation of the images behind these statistics; None when the way there is not affine.

    The map from image to statistics is measured, not derived: uniform images give the response A (C_out, C) to the mean
    with all borders, paddings and preceding operators in it; Gaussian images with the correlations of natural ones
    give the variance V (C_out,) that unit deviation causes. Then mu = A m + b for m, and var = V s^2 + (what the mean
    image causes at the borders) for s.
    """
    feeds = Feeds(model)
    graph = TorchGraph(model, outputs=[stats.value]).eval()
    planes = feeds.main.planes
    channels = planes[0]

    batch = feeds.batch or 1  # images that run together at least
    others = [spec for spec in feeds.others if spec.is_float and None not in spec.sample_shape]

    @torch.no_grad()
    def respond(images: Tensor) -> Tensor:
        found = []
        for part in torch.split(images, feeds.batch or len(images)):
            silent = {spec.name: torch.zeros(len(part), *map(int, spec.sample_shape)) for spec in others}  # type: ignore[arg-type]
            given = {feeds.main.name: as_input(feeds.main, part), **silent}
            found.append(graph(*feeds.of(graph.input_names, given))[0])
        return torch.cat(found)

    probe = torch.zeros(batch, *planes)
    zero = respond(probe)[:1]
    surrogates = _natural_noise(planes, batch)
    once, opposite = respond(surrogates) - zero, respond(-2 * surrogates) - zero
    if not (once.isfinite().all() and opposite.isfinite().all()):
        return None
    if not torch.allclose(opposite, -2 * once, rtol=1e-3, atol=1e-4 * float(once.abs().max())):
        return None
    axes = [axis for axis in range(zero.dim()) if axis != 1]
    response = []
    for channel in range(channels):
        probe.zero_()[:, channel] = 1
        response.append((respond(probe) - zero).mean(axes))
    a = torch.stack(response, 1).double().numpy()  # (C_out, C)
    base = zero.mean(axes).double().numpy()
    variance = once.var(axes, correction=0).double().numpy()
    with np.errstate(over="ignore"):
        alive = (stats.var > 1e-3 * np.median(stats.var)) & (variance > 1e-6 * variance.max())
    if not alive.any():
        return None
    mean = _solve_mean(a[alive], stats.mean[alive] - base[alive], stats.var[alive])
    flat = respond(torch.from_numpy(mean).float()[:, None, None].expand_as(probe).contiguous())
    # Where borders are padded with zeros, the mean image alone already varies from place to place.
    borders = flat.var(axes, correction=0).double().numpy()[alive]
    share = np.maximum(stats.var[alive] - borders, 0.05 * stats.var[alive]) / variance[alive]
    return mean, float(np.exp(0.5 * np.median(np.log(share))))


def _solve_mean(
    a: Float64[NDArray[np.float64], "o c"],
    wanted: Float[NDArray[np.floating], "o"],
    var: Float32[NDArray[np.float32], "o"],
) -> Float64[NDArray[np.float64], "c"]:
    """m with A m = wanted, rows in units of their deviation."""
    weight = 1 / np.sqrt(var.astype(np.float64))
    a, target = a * weight[:, None], wanted * weight
    # First one grey for all channels, then what colour adds: filters see little of it, so it is held back (ridge).
    grey = a.sum(1)
    level = grey @ target / max(grey @ grey, 1e-30)
    ridge = 0.03 * np.trace(a.T @ a) / a.shape[1] + 1e-30
    colour: NDArray[np.float64] = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T @ (target - level * grey))
    return colour + float(level)


def _natural_noise(shape: tuple[int, int, int], multiple: int) -> Float32[Tensor, "n {shape[0]} {shape[1]} {shape[2]}"]:
    """Gaussian images of unit deviation, correlated between neighbours and between channels.

    N: enough for SURROGATE_PIXELS, 16 to 1024, and a multiple of `multiple`.
    """
    channels, height, width = shape
    count = -(-min(1024, max(16, SURROGATE_PIXELS // (height * width))) // multiple) * multiple
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn((2, count, channels, height, width), generator=generator)
    common = common[:, :1]
    mixed = CHANNEL_CORRELATION**0.5 * common + (1 - CHANNEL_CORRELATION) ** 0.5 * own
    images: Tensor = _root(height) @ mixed @ _root(width).T
    return images


def _root(length: int) -> Float32[Tensor, "{length} {length}"]:
    """Cholesky root of the correlation 0.95^distance along one axis."""
    place = torch.arange(length, dtype=torch.float64)
    correlation = torch.tensor(NEIGHBOUR_CORRELATION, dtype=torch.float64) ** (place[:, None] - place).abs()
    root: Tensor = torch.linalg.cholesky(correlation)
    return root.float()
