"""The quantizers of a QDQ graph as data, whichever tool wrote it."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy.typing import ArrayLike, NDArray

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Uniform quantization of one tensor, in ONNX's terms.

    scale, zero: () for the whole tensor, (C,) along `axis`, or in blocks of `block` along it. low, high: the least and
    greatest integer that occurs.
    """

    scale: Float64[NDArray[np.float64], "..."]
    zero: Int64[NDArray[np.int64], "..."]
    low: int
    high: int
    axis: int = 0
    block: int = 0

    @property
    def bits(self) -> int:
        """Of the integers that occur."""
        return int(self.high - self.low).bit_length()

    @property
    def per_tensor(self) -> bool:
        """Whether there is one scale."""
        return self.scale.size == 1

    @property
    def ends(self) -> tuple[float, float]:
        """The least and greatest number that a grid with one scale holds."""
        scale, zero = float(self.scale.reshape(-1)[0]), int(self.zero.reshape(-1)[0])
        return (self.low - zero) * scale, (self.high - zero) * scale

    def same_as(self, other: "Grid") -> bool:
        """Whether both hold the same numbers, with one scale for the whole tensor."""
        if not (self.per_tensor and other.per_tensor) or (self.low, self.high) != (other.low, other.high):
            return False
        return bool(
            self.scale.reshape(-1) == other.scale.reshape(-1) and self.zero.reshape(-1) == other.zero.reshape(-1)
        )

    def aligned(self, parameter: NDArray[Number], shape: tuple[int, ...]) -> NDArray[Number]:
        """Scale or zero point in a form that broadcasts against `shape`."""
        if parameter.size == 1:
            return parameter.reshape(())
        axis = self.axis % len(shape)
        if self.block:
            return np.repeat(parameter, self.block, axis=axis).take(range(shape[axis]), axis=axis)
        return parameter.reshape([-1 if place == axis else 1 for place in range(len(shape))])

    def integers(self, tensor: ArrayLike) -> NDArray[np.float64]:
        """The tensor on the grid, rounded half to even; same shape."""
        array = np.asarray(tensor, np.float64)
        scale, zero = self.aligned(self.scale, array.shape), self.aligned(self.zero, array.shape)
        found: NDArray[np.float64] = np.clip(np.rint(array / scale) + zero, self.low, self.high)
        return found

    def numbers(self, integers: ArrayLike) -> NDArray[np.float64]:
        """What integers stand for; same shape."""
        array = np.asarray(integers, np.float64)
        scale, zero = self.aligned(self.scale, array.shape), self.aligned(self.zero, array.shape)
        found: NDArray[np.float64] = (array - zero) * scale
        return found

    def round_trip(self, tensor: ArrayLike) -> NDArray[np.float64]:
        """The tensor quantized and dequantized; same shape."""
        return self.numbers(self.integers(tensor))


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizer:
    """Of an activation. value: the name of what QuantizeLinear gives; source: of what it reads.

    grid: of the QuantizeLinear and of a Clip right behind it. back: of the DequantizeLinear, as a rule the same.
    bounds: between which the network itself keeps the value (a Clip that was moved onto the integers); None for no
    bound.
    """

    value: str
    source: str
    grid: Grid
    back: Grid
    bounds: tuple[float | None, float | None] = (None, None)

    def round_trip(self, tensor: ArrayLike) -> NDArray[np.float64]:
        """The tensor as its readers get it."""
        return self.back.numbers(self.grid.integers(tensor))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedConstant:
    """A weight, a bias or another constant. value: the name of what DequantizeLinear gives.

    numbers: what it gives. original: the float array, where the file quantizes that itself.
    """

    value: str
    grid: Grid
    integers: Int64[NDArray[np.int64], "..."]
    numbers: Float32[NDArray[np.float32], "..."]
    original: Float32[NDArray[np.float32], "..."] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantizers:
    """All of a graph, in graph order."""

    activations: tuple[Quantizer, ...]
    constants: tuple[QuantizedConstant, ...]
