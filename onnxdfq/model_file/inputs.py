"""The inputs of a model: shapes, types, where the batch is, and which one takes the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import ShapeError
from passes.graph.compared import FLOATS
from passes.graph.editing import name_of

FREE_BATCH = "batch"
CHANNELS = (1, 3, 4)
"""Of images, as far as their layout is told by it."""
LEAST_SIDE = 8  # of an image, where something else could be meant

Planes = TypeVar("Planes")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One graph input.

    Attributes:
        name: Of the value.
        shape: Sizes; None on the batch axis where the batch is free, and on axes whose size the file leaves open.
        dtype: ONNX element type.
        batch_axis: Along which samples lie; None where one array serves a whole run (a flag, the size of an image).
        image: "first" or "last", where the input takes images with their channels there; None where it takes none.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: ir.DataType
    batch_axis: int | None = 0
    image: str | None = None

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floating-point."""
        return self.dtype in FLOATS

    @property
    def is_bytes(self) -> bool:
        """Whether it takes pixels as bytes."""
        return self.image is not None and self.dtype == ir.DataType.UINT8

    @property
    def batch(self) -> int | None:
        """The only number of samples that runs, None where any does."""
        return None if self.batch_axis is None else self.shape[self.batch_axis]

    @property
    def sample_shape(self) -> tuple[int | None, ...]:
        """Of one sample: the shape without its batch axis."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.batch_axis)

    @property
    def planes(self) -> tuple[int, int, int]:
        """(C, H, W) that one sample is looked at as: a signal has one row, a video's frames lie below one another.

        Raises:
            ShapeError: A size is not known.
        """
        sizes = [size for size in self.sample_shape if size is not None]
        if len(sizes) != len(self.sample_shape):
            raise ShapeError(
                f"The shape of the input {self.name!r} is not known: give --input-shape {self.name}={self.text(1)}."
            )
        if self.image == "last":
            return sizes[2], sizes[0], sizes[1]
        channels, *rest = sizes or [1]
        return channels, math.prod(rest[:-1]), rest[-1] if rest else 1

    def from_planes(self, planes: NDArray[np.generic]) -> NDArray[np.generic]:
        """Samples (N, C, H, W) as the input has them: (N, *sample_shape); a view where that is possible."""
        if self.image == "last":
            return planes.transpose(0, 2, 3, 1)
        return planes.reshape(len(planes), *(size or 1 for size in self.sample_shape))

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape at this batch size; a fixed batch stays as it is."""
        return tuple(batch if size is None else size for size in self.shape)

    def joined(self, samples: NDArray[np.generic]) -> NDArray[np.generic]:
        """Samples (n, *sample_shape) as the model takes them; of an input without a batch, the first."""
        return np.asarray(samples[0]) if self.batch_axis is None else np.moveaxis(samples, 0, self.batch_axis)

    def text(self, batch: int | str = "N") -> str:
        """The shape for people: "1,3,224,224"."""
        return ",".join(str(batch if axis == self.batch_axis else size or "?") for axis, size in enumerate(self.shape))


def fed_inputs(model: ir.Model) -> list[ir.Value]:
    """The values that the caller has to feed, in graph order, without initializers that are inputs as well."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def inputs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that the caller has to feed, in graph order, without initializers that are inputs as well."""
    values = fed_inputs(model)
    axes = batch_axes(values)
    floats = [value for value in values if value.dtype in FLOATS]
    specs = []
    for value in values:
        shape = tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape or ())
        alone = value.dtype in FLOATS and len(floats) == 1
        specs.append(
            InputSpec(
                name=name_of(value),
                shape=shape,
                dtype=value.dtype or ir.DataType.UNDEFINED,
                batch_axis=axes[name_of(value)],
                image=_image(shape, value.dtype, axes[name_of(value)], alone=alone),
            )
        )
    return tuple(specs)


def batch_axes(values: Sequence[ir.Value]) -> dict[str, int | None]:
    """By input name, the axis along which samples lie.

    A symbol tells: one that is called as a batch is, or that of a leading axis, unless it lies beside one that is so
    called; where no leading axis is open, the one that is open behind a leading size above 1 (a sequence, a state per
    layer). Where no size is open, the batch is 1 if some input of rank 2 or more begins with it, else what the input of
    the highest rank begins with.
    """
    symbols = [[_symbol(dim) for dim in value.shape or ()] for value in values]
    called = {name for names in symbols for name in names if name is not None and name.lower() in _CALLED_BATCH}
    beside = {name for names in symbols if called.intersection(names) for name in names if name} - called
    leading = {names[0] for names in symbols if names and names[0] is not None} - beside
    if not leading and not called:
        behind = [names[1] for names, value in zip(symbols, values, strict=True) if _opens_behind(value, names)]
        called.update(name for name in behind if name is not None)
    batch = leading | called
    if not batch:
        return _fixed_axes(values)
    return {
        name_of(value): next(
            (
                axis
                for wanted in (called, batch)
                for axis, name in enumerate(names)
                if name in wanted and (name or axis == 0)
            ),
            None,
        )
        for value, names in zip(values, symbols, strict=True)
    }


_CALLED_BATCH = {"n", "b", "bs", "batch", "batch_size", "batchsize"}


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    """What an open size is called, "" where it has no name; None for a number."""
    return None if isinstance(dim, int) and dim >= 0 else (dim.value or "" if isinstance(dim, ir.SymbolicDim) else "")


def _opens_behind(value: ir.Value, names: Sequence[str | None]) -> bool:
    return (
        len(names) > 1
        and names[1] is not None
        and [name for name in names if name is not None] == [names[1]]
        and value.shape is not None
        and isinstance(value.shape[0], int)
        and value.shape[0] > 1
    )


def _fixed_axes(values: Sequence[ir.Value]) -> dict[str, int | None]:
    shapes = {name_of(value): tuple(value.shape or ()) for value in values}
    arrays = [shape for shape in shapes.values() if len(shape) > 1]
    size = 1 if any(shape[0] == 1 for shape in arrays) else max(arrays, key=len)[0] if arrays else None
    return {name: 0 if len(shape) > 1 and shape[0] == size else None for name, shape in shapes.items()}


def _image(
    shape: Sequence[int | None], dtype: ir.DataType | None, batch_axis: int | None, *, alone: bool
) -> str | None:
    """Where the channels of images are, None where the input takes no images. alone: it is the only float input."""
    if len(shape) != 4 or batch_axis not in (0, None) or dtype not in (*FLOATS, ir.DataType.UINT8):
        return None
    if shape[3] in CHANNELS and shape[1] not in CHANNELS:
        return "last"
    if alone:
        return "first"
    sides = [size for size in shape[2:] if size is not None]
    return "first" if shape[1] in CHANNELS and all(size >= LEAST_SIDE for size in sides) else None


def main_input(model: ir.Model) -> InputSpec:
    """The input that samples are counted by: the first that takes images, else the first of floats, else the first.

    Raises:
        ShapeError: The model has no input.
    """
    specs = inputs(model)
    for choice in (
        [spec for spec in specs if spec.image is not None],
        [spec for spec in specs if spec.is_float and spec.shape],
        [spec for spec in specs if spec.shape],
        specs,
    ):
        if choice:
            return choice[0]
    raise ShapeError("The model has no input, so it computes nothing but constants: there is nothing to compress.")


def batch_of(model: ir.Model) -> int | None:
    """The only number of samples that runs at once, None where any does."""
    specs = inputs(model)
    found = [spec.batch for spec in specs if spec.batch_axis is not None]
    return None if any(batch is None for batch in found) else (found[0] if found else 1)
