"""Values of a network over all images, each computed from the nearest one that is still in memory."""

import onnx_ir as ir
import torch
from jaxtyping import Float
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.cache import Cache
from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import InputError
from onnxdfq.images.samples import Samples, SamplesLike

BATCH_SIZE = 64


class NotByImage(Exception):
    """The first axis of a value is not that of the images, so it cannot be kept image by image."""


class Prefix:
    """A network that is run from its images to its outputs, block by block.

    It keeps one value, of which the next is computed, where that suffices; where it does not (a branch that began
    earlier), the images are run again. The graph may be edited behind the value that is kept.

    Args:
        model: Float, or QDQ.
        pixels: In the model's input units. Where the model runs at one batch size only, those that
            do not fill a batch are left out.
        cache: Where values over all images lie.
        device: Where the network runs.
    """

    def __init__(self, model: ir.Model, pixels: SamplesLike, cache: Cache, device: torch.device) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._feeds = Feeds(model)
        whole = len(pixels) - len(pixels) % (self._feeds.batch or 1)  # a model of one batch size runs full batches only
        self._samples = Samples.of(pixels)[:whole]
        self._inputs = {self._feeds.main.name: self._samples.main, **self._samples.others}
        self._name: str | None = None
        self._value: Tensor | None = None

    def keep(self, name: str, value: Float[Tensor, "n ..."]) -> None:
        """Compute what follows from this value (N, *) named `name`."""
        self._name, self._value = (None, None) if name in self._inputs else (name, value)

    @torch.no_grad()
    def value(self, name: str) -> Float[Tensor, "n ..."]:
        """The value of this name, (N, *) bfloat16 on the CPU; what the model is fed as it is.

        Raises:
            NotByImage: Its first axis is not that of the images.
        """
        if name in self._inputs:
            if self._feeds.specs[name].batch_axis != 0:
                raise NotByImage(name)
            return from_numpy(self._inputs[name])
        if name == self._name and self._value is not None:
            return self._value
        graph = self._graph_from_kept(name)
        size = self._feeds.run_size(self._samples, BATCH_SIZE)
        result: Tensor | None = None
        for start in range(0, len(self._samples), size):
            (found,) = graph(*self._given(graph, slice(start, start + size)))
            rows = len(self._samples[start : start + size])
            if found.ndim < 2 or len(found) != rows:
                raise NotByImage(name)
            if result is None:
                result = self._cache.empty((len(self._samples), *found.shape[1:]))
            result[start : start + rows] = found.to(result)
        assert result is not None
        return result

    def _given(self, graph: TorchGraph, rows: slice) -> list[Tensor]:
        if self._value is not None:
            return [self._value[rows].to(self._device, torch.float32)]
        arrays = self._feeds.arrays(self._samples[rows])
        return [from_numpy(arrays[name]).to(self._device) for name in graph.input_names]

    def _graph_from_kept(self, name: str) -> TorchGraph:
        if self._name is not None:
            try:
                return TorchGraph(self._model, inputs=[self._name], outputs=[name]).to(self._device).eval()
            except InputError:  # it depends on more
                self._name, self._value = None, None
        return TorchGraph(self._model, outputs=[name]).to(self._device).eval()
