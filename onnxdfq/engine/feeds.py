"""The inputs of a graph as tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.samples import Samples, SamplesLike


class Feeds(Feeding):
    """Tensors for the inputs of a model. A graph that is made from it may have fewer inputs, or another order."""

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs, in graph order."""
        return tuple(self.specs)

    def of(self, names: Sequence[str], given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The arguments of a graph with the inputs `names`, on the device of what is given.

        Args:
            names: Of inputs of the model.
            given: By input name, (N, *sample_shape) of any type that the graph computes with. Gradients pass.

        Returns:
            In the order of `names`, each as the model has it; inputs that are not given are fed what suits them.
        """
        some = next(iter(given.values()))

        def tensor(name: str) -> Tensor:
            if name not in given:
                return from_numpy(self.filled(name, len(some))).to(some.device)
            axis = self.specs[name].batch_axis
            return given[name][0] if axis is None else given[name].movedim(0, axis)

        return tuple(map(tensor, names))

    def batches(
        self, names: Sequence[str], samples: SamplesLike, batch_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yields the arguments of a graph for all samples, batch by batch, each in its input's own type.

        Where the model runs at one batch size only, samples that do not fill a last batch are left out.

        Args:
            names: As for `of`.
            samples: In the model's input units.
            batch_size: Samples in a batch, where the model leaves it open.
            device: Of the tensors.

        Raises:
            DataError: The samples are not of the inputs' shapes, or do not fill the one batch that runs.
        """
        samples = Samples.of(samples)
        self.check(samples)
        size = self.run_size(samples, batch_size)
        for start in range(0, len(samples) - (size - 1 if self.batch else 0), size):
            arrays = self.arrays(samples[start : start + size])
            yield tuple(from_numpy(arrays[name]).to(device) for name in names)
