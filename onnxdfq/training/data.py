"""What a network trains on: samples by index, as it takes them, and views of them."""

from collections.abc import Sequence
from itertools import accumulate

import onnx_ir as ir
import torch
from jaxtyping import Int64
from torch import Tensor

from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.errors import DataError
from onnxdfq.images.samples import Samples, SamplesLike
from onnxdfq.images.shards import Shards
from onnxdfq.training.augmentation import flipped_and_shifted, mixed

HELD_BACK = 10  # one sample of so many decides which state is kept, and trains nothing
MOST_HELD = 512  # of them: they are looked at twenty times


def held_back(count: int) -> Int64[Tensor, "h"]:
    """Indices of those of `count` samples that decide which state is kept."""
    return torch.arange(0, count, max(HELD_BACK, -(-count // MOST_HELD)))


def trains(count: int) -> Int64[Tensor, "t"]:
    """Those of the others."""
    return torch.tensor(sorted(set(range(count)) - set(held_back(count).tolist())), dtype=torch.int64)


class TrainingData:
    """Samples on the device, by index. Of those in several files one file is in memory.

    Args:
        model: Whose inputs they are.
        samples: All.
        device: Where batches go.

    Attributes:
        held: Indices of those that decide which state is kept.
        trains: Those of the others.
        parts: How many of these lie in each file.

    Raises:
        DataError: Samples do not fit the model, or are too few to hold any back.
    """

    def __init__(self, model: ir.Model, samples: SamplesLike | Shards, device: torch.device) -> None:
        self._feeds = Feeds(model)
        self._main = self._feeds.main
        self._views = self._main.image is not None and self._main.is_float
        self._device = device
        self._source = samples if isinstance(samples, Shards) else Samples.of(samples)
        counts = samples.counts if isinstance(samples, Shards) else (len(self._source),)
        self._ends = tuple(accumulate(counts))
        self._part, self._arrays = -1, dict[str, Tensor]()
        self._load(0)
        self.held, self.trains = held_back(len(self)), trains(len(self))
        if not len(self.trains):
            raise DataError("Training needs 2 samples at least, for one of ten decides which state is kept; give more.")
        self.parts = tuple(len(part) for part in self._parted(self.trains))

    def __len__(self) -> int:
        return self._ends[-1]

    def batch_size(self, wanted: int) -> int:
        """That of the model where it runs at one only."""
        return self._feeds.batch or wanted

    def batches(self, index: Int64[Tensor, "n"], wanted: int) -> tuple[Int64[Tensor, "b"], ...]:
        """Samples batch by batch; where the model runs at one batch size only, those that do not fill one are left.

        index: ascending.
        """
        size = self.batch_size(wanted)
        found: list[Tensor] = []
        for part in self._parted(index):
            whole = len(part) - (len(part) % size if self._feeds.batch else 0)
            found += torch.split(part[:whole], size) if whole else []
        return tuple(found) or (index[torch.arange(size) % len(index)],)

    def batch(self, index: Int64[Tensor, "n"], generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The arguments of the network for some samples of one file, images among them as `generator` views them."""
        (whole,) = self.sliced(index, generator, [slice(None)])
        return whole

    def sliced(
        self, index: Int64[Tensor, "n"], generator: torch.Generator | None, rows: Sequence[slice]
    ) -> list[tuple[Tensor, ...]]:
        """The same for these slices of the batch, whose views are those that they have in it."""
        part = next(part for part, end in enumerate(self._ends) if index[0] < end)
        self._load(part)
        own = index - (self._ends[part - 1] if part else 0)
        given = {name: array[own].to(self._device) for name, array in self._arrays.items()}
        if generator is not None and self._views:
            images = mixed(given[self._main.name], generator)
            given[self._main.name] = flipped_and_shifted(images, generator, self._main.image or "first")
        cut = [{name: array[each] for name, array in given.items()} for each in rows]
        return [tuple(map(channels_last, self._feeds.of(self._feeds.names, each))) for each in cut]

    def _load(self, part: int) -> None:
        if part == self._part:
            return
        self._arrays = {}  # before the next is there
        samples = self._source.samples(part) if isinstance(self._source, Shards) else self._source
        self._feeds.check(samples)
        self._arrays = {self._main.name: from_numpy(samples.main)}
        self._arrays |= {name: from_numpy(array) for name, array in samples.others.items()}
        self._part = part

    def _parted(self, index: Int64[Tensor, "n"]) -> tuple[Int64[Tensor, "_"], ...]:
        """Ascending indices, file by file."""
        return torch.tensor_split(index, torch.searchsorted(index, torch.tensor(self._ends[:-1], dtype=torch.int64)))
