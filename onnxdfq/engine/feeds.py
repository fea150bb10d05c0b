"""The inputs of a graph as tensors."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.samples import SamplesLike


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

        Args:
            names: As for `of`.
            samples, batch_size: As for `parts`.
            device: Of the tensors.

        Raises:
            DataError: As `parts` does.
        """
        for part in self.parts(samples, batch_size):
            arrays = self.arrays(part)
            yield tuple(from_numpy(arrays[name]).to(device) for name in names)
