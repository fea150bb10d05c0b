"""The inputs of a model: their shapes and types, which one takes images, and what the others are fed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import ShapeError
from passes.graph.editing import name_of

FREE_BATCH = "batch"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """One graph input. `shape[0]` is None where the batch is free; a number there is the only batch that runs."""

    name: str
    shape: tuple[int | None, ...]
    dtype: ir.DataType

    @property
    def is_float(self) -> bool:
        return self.dtype in _FLOATS

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape at this batch size; a fixed batch stays as it is."""
        return tuple(batch if size is None else size for size in self.shape)


def inputs(model: ir.Model) -> tuple[InputSpec, ...]:
    """The inputs that the caller has to feed, in graph order, without initializers that are inputs as well."""
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape or ())
        specs.append(InputSpec(name=name_of(value), shape=shape, dtype=value.dtype or ir.DataType.UNDEFINED))
    return tuple(specs)


def image_input(model: ir.Model) -> InputSpec:
    """The input that takes the images: the only float input of rank 4, else the only float input.

    Every other input is fed `constant_input`.

    Raises:
        ShapeError: No input is of this kind, or several are.
    """
    specs = inputs(model)
    floats = [spec for spec in specs if spec.is_float]
    candidates = [spec for spec in floats if len(spec.shape) == 4] or floats
    if len(candidates) != 1:
        listed = ", ".join(f"{spec.name!r} {spec.dtype.name} rank {len(spec.shape)}" for spec in specs) or "none"
        found = "no float input" if not candidates else f"{len(candidates)} inputs that could take images"
        raise ShapeError(
            f"The model has {found} (inputs: {listed}); exactly one float input of rank 4, or one float input in all, "
            "is needed: export it with the others as constants."
        )
    return candidates[0]


def constant_input(spec: InputSpec, batch: int) -> NDArray[np.generic]:
    """The array for an input that takes no images: zeros for floats and booleans, ones for integers.

    The integer inputs of detectors and transformers are sizes, scales or masks, where 1 is harmless and 0 is not.

    Args:
        spec: Of the input.
        batch: Its leading size, where that is free.

    Returns:
        Of the input's shape and type.
    """
    shape, dtype = spec.with_batch(batch), spec.dtype.numpy()
    return np.ones(shape, dtype) if np.issubdtype(dtype, np.integer) else np.zeros(shape, dtype)


def parse_input_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of `--input-shape`: `["x=1,3,224,224"]`, or `["1,3,224,224"]` for the image input.

    Returns:
        By input name, "" for the image input.

    Raises:
        ShapeError: A text has another form, or a size below 1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise ShapeError(f"--input-shape {text!r} is not NAME=1,3,224,224 or 1,3,224,224.") from error
        if min(shape) < 1:
            raise ShapeError(f"--input-shape {text!r} holds a size below 1; give the real sizes, such as 1,3,224,224.")
        shapes[name.strip()] = shape
    return shapes


def fix_input_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int]] | None) -> None:
    """Writes sizes into the graph inputs, in place; afterwards only the batch (axis 0) may be free.

    Args:
        model: Its inputs change.
        shapes: By input name, "" for the image input. Their batch is ignored where the model's is free.

    Raises:
        ShapeError: A size stays open or contradicts the model; says which `--input-shape` to give for which input.
    """
    sizes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    if "" in sizes:
        specs = inputs(model)
        sizes.setdefault((specs[0] if len(specs) == 1 else image_input(model)).name, sizes.pop(""))
    values = {name_of(value): value for value in model.graph.inputs}
    for name in sizes:
        if name not in values:
            known = ", ".join(map(repr, values))
            raise ShapeError(f"--input-shape names the input {name!r}, which the model lacks; it has {known}.")
    for name, value in values.items():
        _fix(name, value, sizes.get(name))


def _fix(name: str, value: ir.Value, given: tuple[int, ...] | None) -> None:
    if value.shape is None:
        if given is None:
            raise ShapeError(f"Input {name!r} has no shape; give it with --input-shape {name}=1,3,224,224.")
        value.shape = ir.Shape([FREE_BATCH, *given[1:]])
        return
    dims: list[int | ir.SymbolicDim] = list(value.shape)
    if given is not None and len(given) != len(dims):
        raise ShapeError(
            f"--input-shape for {name!r} has {len(given)} sizes and the input has {len(dims)}: {_text(dims)}."
        )
    for axis, dim in enumerate(dims):
        known = isinstance(dim, int) and dim >= 0  # some exporters write -1 for "unknown"
        if dim == 0:
            raise ShapeError(
                f"Input {name!r} has size 0 on axis {axis} ({_text(dims)}); export the model with its real sizes."
            )
        if given is not None and known and axis and dim != given[axis]:
            raise ShapeError(
                f"--input-shape gives {given[axis]} for axis {axis} of {name!r}, which the model fixes at {dim}."
            )
        if not known and axis and given is None:
            raise ShapeError(
                f"Input {name!r} has unknown sizes: {_text(dims)}; give them with --input-shape "
                f"{name}={_suggestion(dims)}."
            )
        if not known:
            symbol = dim if isinstance(dim, ir.SymbolicDim) and dim.value else ir.SymbolicDim(FREE_BATCH)
            dims[axis] = symbol if axis == 0 or given is None else given[axis]
    value.shape = ir.Shape(dims)


def _text(dims: Sequence[int | ir.SymbolicDim]) -> str:
    return "×".join("?" if not isinstance(dim, int) and not dim.value else str(dim) for dim in dims)


def _suggestion(dims: Sequence[int | ir.SymbolicDim]) -> str:
    guesses = [1, 3, 224, 224] if len(dims) == 4 else [1] * len(dims)
    sizes = [dim if isinstance(dim, int) and dim > 0 else guess for dim, guess in zip(dims, guesses, strict=True)]
    return ",".join(map(str, [1, *sizes[1:]]))
