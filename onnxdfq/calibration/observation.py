"""One pass of the images through the float graph: histograms of values, channel means of what layers read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray

from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.memory import BATCH_BYTES, images_within
from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.errors import DataError
from onnxdfq.images.samples import SamplesLike


class ChannelMean:
    """Streamed mean over all axes but one, that of the channels."""

    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.total = np.zeros(())
        self.count = 0

    def add(self, values: Float[torch.Tensor, "..."]) -> None:
        """Take in one batch, of any shape that has the axis."""
        rows = values.detach().movedim(self.axis, -1).flatten(0, -2)  # (K, C)
        self.total = self.total + rows.sum(dim=0, dtype=torch.float64).cpu().numpy()
        self.count += rows.shape[0]

    @property
    def mean(self) -> Float64[NDArray[np.float64], "c"]:
        """In the tensor's own unit; 0 where nothing was seen."""
        return np.asarray(self.total / max(self.count, 1))


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Statistics of a float network's values, that plans are decided by.

    histograms: by value name, of what is to be quantized; a value without any number in all runs (the boxes of a
    detector that finds nothing) has none. means: by value name, of what layers with a bias read.
    """

    histograms: Mapping[str, Histogram]
    means: Mapping[str, ChannelMean]


def observe(
    model: ir.Model,
    pixels: SamplesLike,
    *,
    values: tuple[str, ...],
    mean_axes: Mapping[str, int],
    batch_size: int,
    device: str,
    advance: Callable[[str], None],
) -> Observations:
    """Run all images once. Memory: one batch, and a histogram per value.

    Args:
        model: Float.
        pixels: In the model's input units.
        values: Names of what to take histograms of.
        mean_axes: Value name → channel axis, of what to take means of.
        batch_size: Images at once at most, where the model leaves it open; fewer where they are large.
        device: Where the network runs.
        advance: Called after each `batch_size` images, with a note.

    Raises:
        DataError: The images do not fit the input, or the network computes infinities from them.
    """
    histograms = {name: Histogram() for name in values}
    means = {name: ChannelMean(axis) for name, axis in mean_axes.items()}
    graph = TorchGraph(model, outputs=list(dict.fromkeys([*values, *mean_axes]))).to(device).eval()
    with torch.no_grad():
        at_once = min(batch_size, images_within(model, BATCH_BYTES))
        for number, batch in enumerate(Feeds(model).batches(graph.input_names, pixels, at_once, device)):
            _take_in(graph.stream(*map(channels_last, batch)), histograms, means)
            # the caller counts batches of its own size
            ends = [min((number + one) * at_once, len(pixels)) for one in (0, 1)]
            for _ in range(-(-ends[0] // batch_size), -(-ends[1] // batch_size)):
                advance("activations")
    return Observations(histograms=_seen(histograms), means=means)


def observe_runs(
    model: ir.Model,
    runs: Sequence[Mapping[str, torch.Tensor]],
    *,
    values: tuple[str, ...],
    mean_axes: Mapping[str, int],
    device: str,
) -> Observations:
    """The same of a graph whose runs have no images in common, as the body of a loop.

    Args:
        model: Float.
        runs: By input name, what each run is fed.
        values, mean_axes, device: As for `observe`.

    Raises:
        DataError: The graph computes infinities.
    """
    histograms = {name: Histogram() for name in values}
    means = {name: ChannelMean(axis) for name, axis in mean_axes.items()}
    graph = TorchGraph(model, outputs=list(dict.fromkeys([*values, *mean_axes]))).to(device).eval()
    with torch.no_grad():
        for given in runs:
            _take_in(graph.stream(*(given[name] for name in graph.input_names)), histograms, means)
    return Observations(histograms=_seen(histograms), means=means)


def _seen(histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    return {name: histogram for name, histogram in histograms.items() if histogram.counts.any()}


def _take_in(
    stream: Iterator[tuple[str, torch.Tensor]], histograms: dict[str, Histogram], means: dict[str, ChannelMean]
) -> None:
    for name, value in stream:
        try:
            if name in histograms:
                histograms[name].add(value)
        except ValueError as error:
            raise DataError(
                f"The value {name!r} became infinite or not a number on the calibration images; "
                "check the weights, and that --normalize is what the network was trained with."
            ) from error
        if name in means:
            means[name].add(value)
