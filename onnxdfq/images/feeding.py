"""The inputs of a model as arrays: samples that are given, and for every other input what suits it."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.samples import Samples, SamplesLike, fits
from onnxdfq.model_file import batch_of, fillings, inputs, main_input


class Feeding:
    """What a model is run on.

    Args:
        model: Read, not kept.

    Attributes:
        main: The input that samples are counted by.
        others: All other inputs.
        batch: The only number of samples that runs at once, None where any does.

    Raises:
        ShapeError: The model has no input.
    """

    def __init__(self, model: ir.Model) -> None:
        self.main = main_input(model)
        self.specs = {spec.name: spec for spec in inputs(model)}
        self.others = tuple(spec for spec in self.specs.values() if spec.name != self.main.name)
        self.batch = batch_of(model)
        self._fillings = fillings(model)

    def arrays(self, samples: SamplesLike) -> dict[str, NDArray[np.generic]]:
        """By name, all inputs for one run, as the model has them.

        Args:
            samples: Of this run.
        """
        samples = Samples.of(samples)
        given = {self.main.name: samples.main, **samples.others}
        return {
            name: np.asarray(spec.joined(given[name].astype(spec.dtype.numpy(), copy=False)), order="C")
            if name in given
            else self.filled(name, len(samples))
            for name, spec in self.specs.items()
        }

    def filled(self, name: str, count: int) -> NDArray[np.generic]:
        """What suits an input that nobody gives, for so many samples, as the model has it."""
        spec = self.specs[name]
        return np.array(spec.joined(self._fillings[name].draw(spec, count, 0)))

    def run_size(self, samples: SamplesLike, batch_size: int) -> int:
        """How many samples run at once: the model's batch; one where an input without a batch differs between them."""
        if self.batch is not None:
            return self.batch
        given = Samples.of(samples)
        varies = any(
            name in self.specs and self.specs[name].batch_axis is None and len(array) > 1 and array.strides[0] != 0
            for name, array in ((self.main.name, given.main), *given.others.items())
        )
        return 1 if varies else batch_size

    def parts(self, samples: SamplesLike, batch_size: int) -> Iterator[Samples]:
        """Yields all samples, as many at a time as run at once.

        Where the model runs at one batch size only, samples that do not fill a last batch are left out.

        Args:
            samples: In the model's input units.
            batch_size: Samples in a batch, where the model leaves it open.

        Raises:
            DataError: The samples are not of the inputs' shapes, or do not fill the one batch that runs.
        """
        samples = Samples.of(samples)
        self.check(samples)
        size = self.run_size(samples, batch_size)
        for start in range(0, len(samples) - (size - 1 if self.batch else 0), size):
            yield samples[start : start + size]

    def check(self, samples: SamplesLike) -> None:
        """Refuses samples of other shapes.

        Raises:
            DataError: They are not of the inputs' shapes, or do not fill the one batch that runs.
        """
        given = Samples.of(samples)
        for name, array in ((self.main.name, given.main), *given.others.items()):
            expected = self.specs[name].sample_shape
            if not array.ndim or not fits(array.shape[1:], expected):
                raise DataError(
                    f"The samples are {array.shape} and the input {name!r} takes (N, {', '.join(map(str, expected))})."
                )
        if self.batch is not None and len(given) < self.batch:
            raise DataError(
                f"The model takes {self.batch} samples at a time and only {len(given)} are there; give more."
            )
