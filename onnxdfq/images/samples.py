"""Samples: what a network is run on, one array for each of its inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.model_file import InputSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N samples of all inputs; `len` counts them and a slice picks some.

    Attributes:
        main: (N, ...) what the model's main input takes, in its own units and type.
        others: By input name, (N, ...) of the other inputs; one that is missing is fed what suits it. An array that
            serves all samples is broadcast, and takes the memory of one.
    """

    main: NDArray[Any]
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: "Samples | NDArray[Any]") -> "Samples":
        """Samples themselves, or an array of the main input alone."""
        return given if isinstance(given, Samples) else cls(main=given)

    def __len__(self) -> int:
        return len(self.main)

    def __getitem__(self, rows: slice) -> "Samples":
        return Samples(main=self.main[rows], others={name: array[rows] for name, array in self.others.items()})

    @property
    def numbers(self) -> int:
        """How many numbers one sample holds, all inputs together."""
        return sum(int(np.prod(array.shape[1:])) for array in (self.main, *self.others.values()))


SamplesLike: TypeAlias = Samples | NDArray[Any]
"""Samples, or the array of the main input where it is the only one that matters."""


def as_samples(array: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    """An array of the user's as samples of an input: (N, *sample_shape), in the input's type.

    Args:
        array: As the model takes it at batch N; or, with one axis more, one entry per run; or, of an input without a
            batch, one array that serves all (N is 1 then).
        spec: Of the input, its sizes known.
        where: Of the data, for error messages.

    Raises:
        DataError: The array has another shape, a type that does not fit, or holds NaN, infinity, or what becomes that.
    """
    if not _fits_type(array.dtype, spec):
        wanted = spec.dtype.name.lower()
        raise DataError(f"{where}: the array {spec.name!r} is {array.dtype}; the input takes {wanted}.")
    samples = _samples(array, spec)
    if samples is None:
        one = f"({', '.join(map(str, array.shape))})"
        taken = f"({spec.text().replace(',', ', ')})" if spec.shape else "()"
        raise DataError(f"{where}: the array {spec.name!r} is {one}, and the input takes {taken}.")
    kind = spec.dtype.numpy()
    if np.issubdtype(kind, np.integer) and samples.size:
        low, high, limits = int(samples.min()), int(samples.max()), np.iinfo(kind)
        if low < limits.min or high > limits.max:
            wanted = spec.dtype.name.lower()
            numbers = f"holds numbers from {low} to {high}"
            raise DataError(f"{where}: the array {spec.name!r} {numbers}; the input takes {wanted}.")
    if spec.is_float and samples.size:
        if not np.isfinite(samples).all():
            raise DataError(f"{where}: the array {spec.name!r} holds NaN or infinity.")
        with np.errstate(over="ignore"):
            samples = samples.astype(kind, copy=False)
        if not np.isfinite(samples.astype(np.float32, copy=False)).all():
            wanted = spec.dtype.name.lower()
            raise DataError(f"{where}: the array {spec.name!r} holds numbers that are too large for {wanted}.")
    return samples.astype(kind, copy=False)


def _samples(array: NDArray[Any], spec: InputSpec) -> NDArray[Any] | None:
    """(N, *sample_shape) from an array of one of the layouts that `as_samples` takes; None from another."""
    rank, axis = len(spec.shape), spec.batch_axis
    if axis is not None and array.ndim == rank:
        samples = np.moveaxis(array, axis, 0)
    elif axis is not None and array.ndim == rank + 1:  # one entry per run: (runs, ...), a batch in each
        entries = np.moveaxis(array, axis + 1, 1)
        samples = entries.reshape(-1, *entries.shape[2:])
    elif axis is None and fits(array.shape, spec.shape):
        samples = array[np.newaxis]
    elif axis is None and array.ndim == rank and rank and spec.shape[0] and not array.shape[0] % spec.shape[0]:
        samples = array.reshape(-1, spec.shape[0], *array.shape[1:])  # runs one behind the other
    else:
        samples = array
    return samples if samples.ndim and fits(samples.shape[1:], spec.sample_shape) else None


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is one of those that an input takes; None stands for any size."""
    return len(shape) == len(wanted) and all(size in (None, own) for own, size in zip(shape, wanted, strict=True))


def _fits_type(dtype: np.dtype[Any], spec: InputSpec) -> bool:
    if spec.is_float:
        return np.issubdtype(dtype, np.number) and not np.issubdtype(dtype, np.complexfloating)
    kind = spec.dtype.numpy()
    return (np.issubdtype(dtype, np.integer) and np.issubdtype(kind, np.integer)) or dtype == kind
