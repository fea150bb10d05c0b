"""What a network trains on: samples by index, as it takes them, and views of them."""

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor

from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.images.samples import Samples
from onnxdfq.training.augmentation import flipped_and_shifted, mixed


class TrainingData:
    """Samples on the device, by index.

    Args:
        model: Whose inputs they are.
        samples: All.
        device: Where batches go.
    """

    def __init__(self, model: ir.Model, samples: Samples, device: torch.device) -> None:
        self._feeds = Feeds(model)
        self._feeds.check(samples)
        self._main = self._feeds.main
        self._views = self._main.image is not None and self._main.is_float
        self._arrays = {self._main.name: from_numpy(samples.main)}
        self._arrays |= {name: from_numpy(array) for name, array in samples.others.items()}
        self._device = device

    def __len__(self) -> int:
        return len(self._arrays[self._main.name])

    def batch_size(self, wanted: int) -> int:
        """That of the model where it runs at one only."""
        return self._feeds.batch or wanted

    def batches(self, index: Int64[Tensor, "n"], wanted: int) -> tuple[Int64[Tensor, "b"], ...]:
        """Samples batch by batch; where the model runs at one batch size only, those that do not fill one are left."""
        size = self.batch_size(wanted)
        whole = len(index) - (len(index) % size if self._feeds.batch else 0)
        return torch.split(index[:whole], size) if whole else (index[torch.arange(size) % len(index)],)

    def batch(self, index: Int64[Tensor, "n"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The arguments of the network for some samples, images among them as `generator` views them."""
        given = {name: array[index].to(self._device) for name, array in self._arrays.items()}
        if generator is not None and self._views:
            images = mixed(given[self._main.name], generator)
            given[self._main.name] = flipped_and_shifted(images, generator, self._main.image or "first")
        return tuple(map(channels_last, self._feeds.of(self._feeds.names, given)))
