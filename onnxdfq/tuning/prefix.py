"""Values of a network over all images, each computed from the nearest one that is still in memory."""

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import InputError
from onnxdfq.tuning.cache import Cache

BATCH_SIZE = 64


class NotByImage(Exception):
    """The first axis of a value is not that of the images, so it cannot be kept image by image."""


class Prefix:
    """A network that is run from its images to its outputs, block by block.

    It keeps one value, of which the next is computed, where that suffices; where it does not (a branch that began
    earlier), the images are run again. The graph may be edited behind the value that is kept.

    Args:
        model: Float, or QDQ.
        pixels: (N, C, H, W) float32 in the model's input units. Where the model runs at one batch size only, those that
            do not fill a batch are left out.
        cache: Where values over all images lie.
        device: Where the network runs.
    """

    def __init__(
        self, model: ir.Model, pixels: Float32[NDArray[np.float32], "n ..."], cache: Cache, device: torch.device
    ) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._feeds = Feeds(model)
        whole = len(pixels) - len(pixels) % (self._feeds.batch or 1)  # a model of one batch size runs full batches only
        self._images = torch.from_numpy(pixels[:whole])
        self._name: str | None = None
        self._value = self._images

    def keep(self, name: str, value: Float[Tensor, "n ..."]) -> None:
        """Compute what follows from this value (N, *) named `name`."""
        self._name, self._value = (None, self._images) if name == self._feeds.image_name else (name, value)

    @torch.no_grad()
    def value(self, name: str) -> Float[Tensor, "n ..."]:
        """The value of this name, (N, *) bfloat16 on the CPU; the images themselves as they are.

        Raises:
            NotByImage: Its first axis is not that of the images.
        """
        if name == self._feeds.image_name:
            return self._images
        if name == self._name:
            return self._value
        graph = self._graph_from_kept(name)
        size = self._feeds.batch or BATCH_SIZE
        result: Tensor | None = None
        source = self._value if self._name is not None else self._images
        for start in range(0, len(source), size):
            part = source[start : start + size].to(self._device, torch.float32)
            given = (part,) if self._name is not None else self._feeds.of(graph.input_names, part)
            (found,) = graph(*given)
            if found.ndim < 2 or len(found) != len(part):
                raise NotByImage(name)
            if result is None:
                result = self._cache.empty((len(source), *found.shape[1:]))
            result[start : start + size] = found.to(result)
        assert result is not None
        return result

    def _graph_from_kept(self, name: str) -> TorchGraph:
        if self._name is not None:
            try:
                return TorchGraph(self._model, inputs=[self._name], outputs=[name]).to(self._device).eval()
            except InputError:  # it depends on more
                self.keep(self._feeds.image_name, self._images)
        return TorchGraph(self._model, outputs=[name]).to(self._device).eval()
