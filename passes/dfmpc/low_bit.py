"""Rounding of weights to few bits: ternary, DoReFa, uniform, and with regard to the covariance of the inputs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32, Float64, Int8, Shaped
from numpy.typing import NDArray

from passes.graph.affine import Array, output_channels
from passes.graph.editing import is_op

Number = TypeVar("Number", bound=np.generic)
Integers = NDArray[np.int8]
Single = NDArray[np.float32]
Floats = NDArray[np.floating]

# bits → end of the uniform grid with the least squared error for a normal variable, in its standard deviations.
LOADING_FACTOR = {2: 1.22, 3: 1.97, 4: 2.68, 5: 3.31, 6: 3.89, 7: 4.42, 8: 4.92}
REFITS = 3  # rounds of fitting scale and integers to each other
BLOCK = 64  # inputs whose changes are applied at once
WEIGHTS_AT_A_TIME = 2**17  # so that the arrays of one chunk stay in the processor's cache
RIDGE = np.float32(0.1)  # of the mean variance, added to every variance of a measured covariance


@dataclass(frozen=True, kw_only=True, eq=False)
class LowBit:
    """A weight as integers times one scale per output channel.

    integers: the weight's rows, (O, D), |integer| < 2**(bits - 1), for DoReFa up to 2**bits - 1. scale: (O,) positive.
    """

    integers: Int8[Integers, "o d"]
    scale: Float64[Array, "o"]

    @property
    def rows(self) -> Float32[Single, "o d"]:
        """(O, D) the dequantized weight."""
        return np.multiply(self.integers, self.scale[:, None], dtype=np.float32, casting="same_kind")


def channels_first(node: ir.Node) -> bool:
    """Whether output channels are axis 0 of the weight of Conv, ConvTranspose or Gemm, and not axis 1."""
    return is_op(node, "Conv") or (is_op(node, "Gemm") and node.attributes.get_int("transB", 0) != 0)


def weight_rows(node: ir.Node, weight: Shaped[NDArray[Number], "_ _ ..."]) -> Shaped[NDArray[Number], "o d"]:
    """(O, D) a weight with one row per output channel: of Conv (O, I/g, k...), ConvTranspose (I, O, k...) or Gemm.

    D runs over the inputs of the channel's group, taps innermost.
    """
    return (weight if channels_first(node) else weight.swapaxes(0, 1)).reshape(output_channels(node, weight), -1)


def rows_as_weight(
    node: ir.Node, rows: Shaped[NDArray[Number], "o d"], shape: tuple[int, ...]
) -> Shaped[NDArray[Number], "_ _ ..."]:
    """The inverse of `weight_rows`; shape: of the weight."""
    if channels_first(node):
        return rows.reshape(shape)
    return np.ascontiguousarray(rows.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1))


def ternary_of_layer(rows: Float[Floats, "o d"]) -> LowBit:
    """DF-MPC Eq. (3)-(4), from Ternary Weight Networks: one threshold 0.7 E|w| and one scale for the whole layer."""
    magnitude = np.abs(rows)
    kept = magnitude > 0.7 * magnitude.mean(dtype=np.float64)
    scale = magnitude[kept].mean(dtype=np.float64) if kept.any() else 1.0
    return LowBit(integers=(np.sign(rows) * kept).astype(np.int8), scale=np.full(len(rows), scale))


def dorefa(rows: Float[Floats, "o d"], bits: int) -> LowBit:
    """DF-MPC Eq. (6): 2**bits levels of equal distance from -max|w| to max|w| of the layer; zero is none of them.

    The integers are odd, from -(2**bits - 1) to 2**bits - 1. Raises ValueError where these do not fit 8 bits.
    """
    if bits > 7:
        raise ValueError(f"DoReFa's {bits}-bit levels need integers of {bits + 1} bits, and containers hold 8.")
    intervals = 2**bits - 1
    greatest = float(np.abs(rows).max(initial=0.0)) or 1.0
    integers = 2 * np.rint(intervals * (rows / (2 * greatest) + 0.5)) - intervals
    return LowBit(integers=integers.astype(np.int8), scale=np.full(len(rows), greatest / intervals))


def ternary(rows: Float[Floats, "o d"]) -> LowBit:
    """The ternary integers and the scale with the least squared error of each row (O, D), exactly.

    The n greatest magnitudes are kept, n so that (sum of them)**2 / n is greatest; the scale is their mean.
    """
    magnitude = np.abs(rows)
    falling = np.sort(magnitude, axis=1)[:, ::-1]
    gain = np.cumsum(falling, axis=1)
    gain *= gain
    gain /= np.arange(1, rows.shape[1] + 1, dtype=np.float32)
    count = np.argmax(gain, axis=1)[:, None]
    kept = (magnitude >= np.take_along_axis(falling, count, 1)) & (magnitude > 0)
    return with_best_scale(rows, (np.sign(rows) * kept).astype(np.int8))


def uniform(rows: Float[Floats, "o d"], bits: int) -> LowBit:
    """Symmetric integers, up to 2**(bits - 1) - 1, and a scale per row (O, D), near the least squared error.

    Two scales, one for the greatest weight and one for normal weights, are fitted alternately with the integers; each
    row takes the better of the two.
    """
    found = [ternary(part) if bits == 2 else _uniform(part, bits) for part in row_chunks(rows)]
    return LowBit(
        integers=np.concatenate([part.integers for part in found]),
        scale=np.concatenate([part.scale for part in found]),
    )


def row_chunks(rows: Shaped[NDArray[Number], "o d"]) -> Iterator[Shaped[NDArray[Number], "_ d"]]:
    """The rows in chunks, so that temporary arrays stay in the cache and small."""
    count = max(WEIGHTS_AT_A_TIME // rows.shape[1], 1)
    return (rows[first : first + count] for first in range(0, len(rows), count))


def _uniform(rows: Float[Floats, "o d"], bits: int) -> LowBit:
    limit = 2 ** (bits - 1) - 1
    greatest = np.abs(rows).max(axis=1, initial=0)
    ends = (greatest, np.minimum(greatest, LOADING_FACTOR[bits] * np.sqrt(_product(rows, rows) / rows.shape[1])))
    first, second = (_fitted(rows, np.where(end > 0, end / limit, 1.0), limit) for end in ends)
    errors = [_product(miss, miss) for miss in (first.rows - rows, second.rows - rows)]
    worse = errors[1] < errors[0]
    return LowBit(
        integers=np.where(worse[:, None], second.integers, first.integers),
        scale=np.where(worse, second.scale, first.scale),
    )


def _fitted(rows: Float[Floats, "o d"], scale: Float[Floats, "o"], limit: int) -> LowBit:
    for _ in range(REFITS):
        fitted = with_best_scale(
            rows, np.clip(np.rint(rows / scale[:, None].astype(np.float32)), -limit, limit).astype(np.int8)
        )
        scale = fitted.scale
    return fitted


def _product(left: Float[Floats, "o d"], right: Float[Floats, "o d"]) -> Float64[Array, "o"]:
    """(O,) inner products, row by row."""
    return np.asarray(np.einsum("od,od->o", left, right), np.float64)


def with_best_scale(rows: Float[Floats, "o d"], integers: Int8[Integers, "o d"]) -> LowBit:
    """These integers with the scale of the least squared error; a row without any keeps scale 1."""
    whole = integers.astype(np.float32)
    square, product = _product(whole, whole), _product(rows, whole)
    return LowBit(integers=integers, scale=np.where(product > 0, product / np.maximum(square, 1.0), 1.0))


def round_by_tap_covariance(
    rows: Float[Floats, "o d"], start: LowBit, blocks: Float32[Single, "g i k k"], bits: int, sweeps: int
) -> LowBit:
    """Integers with a low variance of the error of the layer's output, input channels taken as independent.

    Args:
        rows: (O, D) float weight, D = I/g * K.
        start: integers and scales to begin from.
        blocks: (g, I/g, K, K) covariance of the K taps of each input channel.
        bits: of the integers.
        sweeps: the most passes over all taps.

    The variance is the sum of d' B d over the kernels, d the error of a kernel and B its block. Coordinate descent:
    tap by tap, in all kernels at once, the integer that is best given the others, so that a tap takes back the rounding
    of correlated taps beside it. The scale of each row is fitted before each sweep. The error never rises.
    """
    group, inputs, taps, _ = blocks.shape
    outputs = len(rows) // group
    shape = (group, outputs, inputs, taps)
    weight, integers, scale = rows.reshape(shape), start.integers.reshape(shape), start.scale.reshape(group, outputs, 1)
    matrix = np.ascontiguousarray(np.moveaxis(blocks, (2, 3), (0, 1)))[:, :, :, None, :]  # (K, K, g, 1, I/g)
    found, scales = np.empty(shape, np.int8), np.empty(scale.shape)
    count = max(WEIGHTS_AT_A_TIME // (group * inputs * taps), 1)
    for first in range(0, outputs, count):  # rows do not depend on each other
        part = (slice(None), slice(first, first + count))
        given = weight[part], integers[part], scale[part]
        found[part], scales[part] = _round_by_tap_covariance(*given, matrix, bits, sweeps)
    return LowBit(integers=found.reshape(rows.shape), scale=scales.reshape(-1))


def _round_by_tap_covariance(
    weight: Float[Floats, "g o i k"],
    integers: Int8[Integers, "g o i k"],
    start: Float[Floats, "g o 1"],
    matrix: Float32[Single, "k k g 1 i"],
    bits: int,
    sweeps: int,
) -> tuple[Float[Floats, "g o i k"], Float[Floats, "g o 1"]]:
    limit, taps = np.float32(2 ** (bits - 1) - 1), len(matrix)
    # taps outermost: each iteration then works on whole planes (g, O/g, I/g)
    weight = np.ascontiguousarray(np.moveaxis(weight, 3, 0))
    whole = np.moveaxis(integers, 3, 0).astype(np.float32, order="C")
    wanted, present = np.zeros_like(weight), np.zeros_like(weight)
    for k in range(taps):
        for j in range(taps):
            wanted[k] += matrix[k, j] * weight[j]
            present[k] += matrix[k, j] * whole[j]
    own = np.maximum(np.stack([matrix[k, k] for k in range(taps)]), np.float32(1e-12))
    scale = start.astype(np.float32)
    for _ in range(sweeps):
        changed = False
        scale = _best_scale("kgoi,kgoi->go", wanted, present, whole, scale)
        for k in range(taps):
            best = np.clip(np.rint(whole[k] + (wanted[k] / scale - present[k]) / own[k]), -limit, limit)
            change = best - whole[k]
            if change.any():
                changed = True
                whole[k] = best
                for j in range(taps):
                    present[j] += matrix[j, k] * change
        if not changed:
            break
    return np.moveaxis(whole, 0, 3), _best_scale("kgoi,kgoi->go", wanted, present, whole, scale)


def round_by_joint_covariance(
    rows: Float[Floats, "o d"], start: LowBit, matrix: Float32[Single, "g d d"], bits: int, sweeps: int
) -> LowBit:
    """As `round_by_tap_covariance`, with the covariance of all inputs of a filter: matrix (g, D, D).

    Input by input, in all filters at once, the integer that is best given the others. A change reaches the other
    inputs of its BLOCK at once, the rest at the end of the block in one matrix product, as in GPTQ (arXiv 2210.17323).
    """
    group, size, _ = matrix.shape
    limit = np.float32(2 ** (bits - 1) - 1)
    diagonal = np.einsum("gdd->gd", matrix)
    # a measured covariance can be singular: without a ridge, errors of inputs that it cannot tell apart cost nothing
    matrix = matrix + RIDGE * diagonal.mean(axis=1)[:, None, None] * np.eye(size, dtype=np.float32)
    own = np.maximum(np.einsum("gdd->gd", matrix), np.float32(1e-12))
    weight = rows.reshape(group, -1, size).astype(np.float32)
    whole = start.integers.reshape(weight.shape).astype(np.float32)
    scale = start.scale.astype(np.float32).reshape(group, -1, 1)
    wanted, present = weight @ matrix, whole @ matrix
    for _ in range(sweeps):
        before = whole.copy()
        scale = _best_scale("god,god->go", wanted, present, whole, scale)
        for first in range(0, size, BLOCK):
            part = slice(first, min(first + BLOCK, size))
            inside, near = present[:, :, part].copy(), matrix[:, part, part]
            aim, old = wanted[:, :, part] / scale, whole[:, :, part].copy()
            for k in range(inside.shape[2]):
                exact = old[:, :, k] + (aim[:, :, k] - inside[:, :, k]) / own[:, None, first + k]
                change = np.clip(np.rint(exact), -limit, limit) - old[:, :, k]
                whole[:, :, first + k] += change
                inside += change[:, :, None] * near[:, None, k]
            present += (whole[:, :, part] - old) @ matrix[:, part]
        if np.array_equal(whole, before):
            break
    scale = _best_scale("god,god->go", wanted, present, whole, scale)
    with np.errstate(invalid="ignore"):  # where sums overflowed, the scale is no number, and is told
        integers = whole.reshape(rows.shape).astype(np.int8)
    return LowBit(integers=integers, scale=scale.reshape(-1).astype(np.float64))


def _best_scale(
    sums: str,
    wanted: Float[Floats, "*rows"],
    present: Float[Floats, "*rows"],
    whole: Float[Floats, "*rows"],
    scale: Float[Floats, "g o 1"],
) -> Float[Floats, "g o 1"]:
    """(g, O/g, 1) the best scale, w' B q / q' B q, from B w, B q and q; `scale` where that is not positive."""
    product, energy = (np.einsum(sums, part, whole)[:, :, None] for part in (wanted, present))
    return np.where((product > 0) & (energy > 0), product / np.maximum(energy, np.float32(1e-30)), scale)
