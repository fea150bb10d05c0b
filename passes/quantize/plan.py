"""`QuantPlan`: which value is quantized how, decided before the graph is touched; `InsertQdq` writes it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256

import numpy as np
from jaxtyping import Float32, Float64, Int8
from numpy.typing import ArrayLike, NDArray

from passes.quantize.grid import integer_range, scale_of


def shifted_name(value: str) -> str:
    """Name of the shifted value, which is quantized instead of `value`."""
    return f"{value}_shifted"


def padded_name(value: str) -> str:
    """Name of the shifted value with its border, where the layer pads."""
    return f"{value}_shifted_padded"


def even_zero_point(steps: float) -> int:
    """The least `zero_point` with so many steps below zero."""
    return 2 * int(np.ceil(steps / 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorQuant:
    """Uniform quantization of one tensor.

    threshold: () for the whole tensor or (C,) along `axis`, in the tensor's own unit.
    clip: lower and upper integer when a Clip of the graph is carried out on the integers, else None.
    zero_point: the integer (counted from the least of the unsigned container) that stands for 0; for grids without sign
    only, 0 otherwise. For values of which few are negative: as far as the grid then begins below zero, it lacks above.
    Even: kernels that add the zero point before they round half to even (ONNX Runtime's Add and Mul) round ties the
    other way where it is odd.
    """

    bits: int
    signed: bool
    threshold: Float64[NDArray[np.float64], "*channels"] | np.float64
    axis: int | None = None
    clip: tuple[int, int] | None = None
    zero_point: int = 0

    def __post_init__(self) -> None:
        if (self.axis is None) != (self.threshold.ndim == 0):
            raise ValueError(f"a threshold of shape {self.threshold.shape} does not go with axis {self.axis}")
        if not np.all(self.threshold > 0) or not np.all(np.isfinite(self.threshold)):
            raise ValueError("every threshold must be positive and finite")
        if self.zero_point and (self.signed or self.zero_point % 2 or not 0 < self.zero_point < 2**self.bits):
            raise ValueError(f"a grid of {self.bits} bits does not begin {self.zero_point} steps below zero")

    @property
    def scale(self) -> NDArray[np.float64]:
        """() or (C,): the distance between neighbouring numbers of the grid, in the tensor's own unit."""
        return scale_of(self.threshold, self.bits, signed=self.signed)

    @property
    def selection(self) -> "TensorQuant":
        """The grid of what an operator selects from this tensor (`SELECTIONS`): a border of zeros has to stay zero."""
        return self if self.clip is None else replace(self, clip=(min(self.clip[0], 0), max(self.clip[1], 0)))

    @property
    def range(self) -> tuple[int, int]:
        """Least and greatest integer that occurs."""
        low, high = (end - self.zero_point for end in integer_range(self.bits, signed=self.signed))
        return (low, high) if self.clip is None else (max(low, self.clip[0]), min(high, self.clip[1]))

    def widened(self, doublings: float) -> "TensorQuant":
        """The grid with steps 2**doublings as wide, that reaches as far below zero."""
        zero_point = min(even_zero_point(self.zero_point * 0.5**doublings), 2**self.bits - 2)
        return replace(self, threshold=self.threshold * 2.0**doublings, zero_point=zero_point)

    def narrowed(self, halvings: float) -> "TensorQuant":
        """The grid with steps 0.5**halvings as wide, that ends earlier on both sides of zero."""
        return replace(self, threshold=self.threshold * 0.5**halvings)

    def integers(self, tensor: ArrayLike) -> NDArray[np.int64]:
        """The tensor on the grid, rounded half to even as ONNX does; same shape."""
        array = np.asarray(tensor, np.float64)
        scale = self.scale
        if self.axis is not None:
            scale = scale.reshape([-1 if d == self.axis else 1 for d in range(array.ndim)])
        return np.clip(np.rint(array / scale), *self.range).astype(np.int64)

    def round_trip(self, tensor: ArrayLike) -> NDArray[np.float64]:
        """The tensor quantized and dequantized; same shape."""
        return self.dequantized(self.integers(tensor))

    def dequantized(self, integers: NDArray[np.integer]) -> NDArray[np.float64]:
        """The numbers that integers of the grid stand for, in the tensor's own unit; same shape."""
        scale = self.scale
        if self.axis is not None:
            scale = scale.reshape([-1 if d == self.axis else 1 for d in range(integers.ndim)])
        return integers * scale


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantPlan:
    """All numbers that quantization writes into the graph.

    activations: by value name.
    weights: by initializer name, per tensor or per output channel.
    constants: by initializer name, the operands of element-wise operators.
    same_as: value name → name of the value whose grid it shares, as its operator only selects numbers (MaxPool, ...).
    biases: by node name, the new bias (C_out,) in float.
    bias_quants: by node name, where the target wants biases on 8-bit grids of their own.
    shifts: value name → constant that `ShiftNegative` adds to it; `activations` then has the shifted value's name.
    integers: by initializer name, integers in the weight's shape that are not the nearest to its floats: tuning found
        them better, or a kernel would saturate on the nearest (`pair_sums`).
    """

    activations: Mapping[str, TensorQuant]
    weights: Mapping[str, TensorQuant]
    constants: Mapping[str, TensorQuant] = field(default_factory=dict)
    same_as: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, Float32[NDArray[np.float32], "_"]] = field(default_factory=dict)
    bias_quants: Mapping[str, TensorQuant] = field(default_factory=dict)
    shifts: Mapping[str, float] = field(default_factory=dict)
    integers: Mapping[str, Int8[NDArray[np.int8], "..."]] = field(default_factory=dict)

    def read_quant(self, value: str) -> TensorQuant | None:
        """The grid that readers of `value` get, be it shifted or shared with another value; None where it is float."""
        if value in self.shifts:
            return self.activations.get(shifted_name(value))
        quant = self.activations.get(self.same_as.get(value, value))
        return quant.selection if quant is not None and value in self.same_as else quant

    def weight_integers(self, name: str, weight: ArrayLike) -> NDArray[np.int64]:
        """The integers that are written for the initializer `name`, whose float array is `weight`; same shape."""
        found = self.integers.get(name)
        return self.weights[name].integers(weight) if found is None else found.astype(np.int64)

    def rounded_weight(self, name: str, weight: ArrayLike) -> NDArray[np.float64]:
        """The dequantized `weight_integers`; same shape."""
        return self.weights[name].dequantized(self.weight_integers(name, weight))

    def with_weight(self, name: str, quant: TensorQuant) -> "QuantPlan":
        """The plan with another grid for one weight, and the nearest integers on it."""
        integers = {key: array for key, array in self.integers.items() if key != name}
        return replace(self, weights={**self.weights, name: quant}, integers=integers)

    def not_finite(self) -> str | None:
        """The name of a tensor or node whose scale is not above 0, or whose scale or bias is not finite in float32."""
        for table in (self.activations, self.weights, self.constants, self.bias_quants):
            for name, quant in table.items():
                with np.errstate(over="ignore"):
                    scale = quant.scale.astype(np.float32)
                if not (np.isfinite(scale).all() and (scale > 0).all()):
                    return name
        numbers: dict[str, ArrayLike] = {**self.biases, **self.shifts}
        return next((name for name, number in numbers.items() if not np.isfinite(number).all()), None)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of all numbers: plans of one fingerprint quantize alike, so what one is tuned to holds for both.

        In which order names stand in a table does not count. Containers are no part of it: they are the target's.
        """
        return _digest((table.name, _canonical(getattr(self, table.name))) for table in fields(self))

    @property
    def activation_fingerprint(self) -> str:
        """The same of `activations` alone: what measurements rest on in which weights are float."""
        return _digest(_canonical(self.activations))


def _canonical(table: Mapping[str, object]) -> list[tuple[str, object]]:
    """Rows in the order of their names, numbers in a form that is written in one way only."""
    return [(name, _number(table[name])) for name in sorted(table)]


def _number(entry: object) -> object:
    if isinstance(entry, TensorQuant):
        return [(part.name, _number(getattr(entry, part.name))) for part in fields(entry)]
    if isinstance(entry, np.ndarray):
        return entry.dtype.str, entry.shape, sha256(entry.tobytes()).hexdigest()
    if isinstance(entry, tuple):
        return tuple(map(_number, entry))
    return entry.item() if isinstance(entry, np.generic) else entry


def _digest(rows: Iterable[object]) -> str:
    return sha256(repr(list(rows)).encode()).hexdigest()
