"""What an input is fed where nobody gives it data: noise, a constant, or an image."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import InputError
from onnxdfq.model_file.inputs import InputSpec, fed_inputs, inputs
from passes.graph.editing import name_of

KEY = "onnxdfq.input"
"""Metadata of an input that holds what the user gave for it (`--input`)."""

MOST = 1e15
"""Of a number, either way: its square, and sums of these, are float32 numbers yet."""

ALLOWED = "image, normal:MEAN:STD, uniform:LOW:HIGH, or a number"
_NUMBERS = {"image": 0, "normal": 2, "uniform": 2, "constant": 1}
_MOVES = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Flatten", "Transpose"}
_COMPARES = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_FACTORS = {"Mul", "Div", "Pow"}


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What an input is fed.

    Attributes:
        kind: "image" (each method has its own; noise of deviation 1 where none has), "normal", "uniform" or "constant".
        numbers: Mean and deviation; least and greatest value, both included; or the value.
        why: What tells so, for the log; "" where nothing does.
    """

    kind: str
    numbers: tuple[float, ...] = ()
    why: str = ""

    @classmethod
    def parse(cls, text: str, name: str) -> "Filling":
        """What `--input NAME=SPEC` says: see `ALLOWED`.

        Raises:
            InputError: It says something else.
        """
        kind, *rest = text.strip().split(":")
        try:
            numbers = tuple(map(float, rest if kind in _NUMBERS else (kind, *rest)))
        except ValueError:
            numbers = (math.nan,)
        kind = kind if kind in _NUMBERS else "constant"
        if len(numbers) != _NUMBERS[kind] or not all(map(math.isfinite, numbers)):
            raise InputError(f"--input {name}={text} is not {ALLOWED}.")
        if any(abs(number) > MOST for number in numbers):
            raise InputError(f"--input {name}={text}: numbers are at least {-MOST:g} and at most {MOST:g}.")
        if (kind == "uniform" and numbers[0] > numbers[1]) or (kind == "normal" and numbers[1] < 0):
            raise InputError(f"--input {name}={text}: the range is empty.")
        return cls(kind=kind, numbers=numbers, why="as --input says")

    def __str__(self) -> str:
        """What `parse` reads back."""
        numbers = [str(int(number)) if number.is_integer() else repr(number) for number in self.numbers]
        return ":".join(numbers if self.kind == "constant" else [self.kind, *numbers])

    @property
    def sentence(self) -> str:
        """For people: "noise of mean 0 and deviation 1"."""
        match self.kind:
            case "normal":
                found = "noise of mean {:g} and deviation {:g}".format(*self.numbers)
            case "uniform":
                found = "uniform noise from {:g} to {:g}".format(*self.numbers)
            case "constant":
                found = "{:g} everywhere".format(*self.numbers)
            case _:
                found = "images"
        return f"{found} ({self.why})" if self.why else found

    def draw(self, spec: InputSpec, count: int, seed: int) -> NDArray[np.generic]:
        """(count, *sample_shape) in the input's type; one draw for all where the input has no batch."""
        shape = tuple(size or 1 for size in spec.sample_shape)
        if spec.dtype == ir.DataType.STRING:
            return np.broadcast_to(np.array("", dtype=object), (count, *shape))
        dtype = spec.dtype.numpy()
        if self.kind == "constant":
            return np.broadcast_to(_as_type(np.asarray(self.numbers[0]), dtype), (count, *shape))
        rows = 1 if spec.batch_axis is None else count
        random = np.random.default_rng([seed, *spec.name.encode()])
        if self.kind == "uniform" and not spec.is_float:
            low, high = (round(number) for number in self.numbers)
            drawn: NDArray[np.generic] = random.integers(low, high, (rows, *shape), endpoint=True)
        elif self.kind == "uniform":
            drawn = random.uniform(self.numbers[0], self.numbers[1], (rows, *shape))
        elif spec.is_bytes and self.kind == "image":
            drawn = random.integers(0, 255, (rows, *shape), endpoint=True)
        else:
            mean, deviation = self.numbers or (0.0, 1.0)
            drawn = mean + deviation * random.standard_normal((rows, *shape))
        array = _as_type(drawn, dtype)
        return array if rows == count else np.broadcast_to(array, (count, *shape))


def _as_type(numbers: NDArray[np.generic], dtype: np.dtype[Any]) -> NDArray[np.generic]:
    """Numbers in another type: whole ones are the nearest that it holds."""
    if np.issubdtype(dtype, np.integer) and np.issubdtype(numbers.dtype, np.floating):
        numbers = np.rint(numbers)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        numbers = np.clip(numbers, limits.min, limits.max)
    return numbers.astype(dtype)


def parse_fillings(texts: Iterable[str]) -> dict[str, str]:
    """By input name, what `--input NAME=WHAT` says.

    Raises:
        InputError: A text has another form.
    """
    found = {}
    for text in texts:
        name, equals, what = text.rpartition("=")
        if not equals or not name.strip():
            raise InputError(f"--input {text!r} is not NAME=WHAT, with one of {ALLOWED}.")
        found[name.strip()] = str(Filling.parse(what, name.strip()))
    return found


def fillings(model: ir.Model) -> dict[str, Filling]:
    """By input name, what it is fed: what the user said, else what suits its type, its shape and what reads it."""
    values = {name_of(value): value for value in model.graph.inputs}
    found = {}
    for spec in inputs(model):
        given = values[spec.name].metadata_props.get(KEY)
        found[spec.name] = _default(spec, values[spec.name]) if given is None else Filling.parse(given, spec.name)
    return found


def given_by_user(model: ir.Model) -> frozenset[str]:
    """Names of the inputs for which the user said what they are fed."""
    return frozenset(name_of(value) for value in model.graph.inputs if KEY in value.metadata_props)


def set_fillings(model: ir.Model, given: Mapping[str, str]) -> None:
    """Writes into the inputs what they are to be fed (`--input`).

    Raises:
        InputError: A name is of no input, or a text is none of `ALLOWED`.
    """
    values = {name_of(value): value for value in fed_inputs(model)}
    for name, text in given.items():
        if name not in values:
            known = ", ".join(map(repr, values)) or "none"
            raise InputError(f"--input names {name!r}, and the model has no such input; it has {known}.")
        values[name].metadata_props[KEY] = str(Filling.parse(text, name))


def _default(spec: InputSpec, value: ir.Value) -> Filling:
    if spec.image is not None:
        return Filling(kind="image")
    readers = list(_readers(value))
    single = math.prod(size or 1 for size in spec.sample_shape) == 1 and spec.batch_axis is None
    if spec.is_float and not single:
        return Filling(kind="normal", numbers=(0.0, 1.0))
    for node, position in readers:
        table = node.inputs[0] if node.op_type in ("Gather", "GatherElements") and position == 1 else None
        if table is not None and table.const_value is not None and spec.dtype.is_integer():
            sizes, axis = table.const_value.shape.numpy(), node.attributes.get_int("axis", 0)
            if not -len(sizes) <= axis < len(sizes):
                continue  # refused when it is run
            rows = sizes[axis]
            why = f"{node.op_type} reads a table of {rows} rows"
            return Filling(kind="uniform", numbers=(0.0, rows - 1.0), why=why)
    for node, position in readers if single else ():
        compared = node.inputs[1 - position] if node.op_type in _COMPARES else None
        other = None if compared is None else ir.convenience.get_const_tensor(compared)
        if other is not None and other.size == 1:
            number = float(other.numpy().reshape(-1)[0])
            return Filling(kind="constant", numbers=(number,), why=f"{node.op_type} compares it with that")
    if spec.is_float:
        return Filling(kind="constant", numbers=(float(any(node.op_type in _FACTORS for node, _ in readers)),))
    if spec.dtype == ir.DataType.BOOL:
        return Filling(kind="constant", numbers=(0.0 if single else 1.0,))
    # The integer inputs of detectors and transformers are sizes, scales or masks, where 1 is harmless and 0 is not.
    return Filling(kind="constant", numbers=(1.0,))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read a value, and at which place, behind nodes that only move it."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop().uses():
            if use.node.op_type in _MOVES and use.idx == 0:
                fresh = [output for output in use.node.outputs if output not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
            else:
                yield use.node, use.idx
