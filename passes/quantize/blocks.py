"""Weights with a scale for every block along the inputs: nearest rounding, and GPTQ.

Both are for weights beside float activations, so that scales need be no power of two.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32, Float64, Int8
from numpy.typing import NDArray

from passes.graph.editing import is_op, name_of, required_name

RATIOS = (1.0, 0.9, 0.8, 0.7)  # of the greatest magnitude of a block; the one with the least squared error is taken
WEIGHTS_AT_A_TIME = 2**18  # that temporary arrays hold
COLUMNS_AT_ONCE = 2**24  # weights whose columns make up for their losses together; more would only take memory
_PANEL = 512
DAMPING = 0.01  # of the mean of the Hessian's diagonal, which is added to it (GPTQ, section 3.3)


@dataclass(frozen=True, kw_only=True)
class BlockLayer:
    """A MatMul or Gemm with a constant matrix.

    node, weight: their names. depth, width: sizes of the matrix as a MatMul has it, (K, N). transposed: whether the
    file holds it as (N, K).
    """

    node: str
    weight: str
    depth: int
    width: int
    transposed: bool

    def matrix(self, array: Float32[NDArray[np.float32], "_ _"]) -> Float32[NDArray[np.float32], "k n"]:
        """The weight as a MatMul has it, (K, N)."""
        return np.ascontiguousarray(array.T if self.transposed else array)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockWeight:
    """integers: (K, N). scales: (ceil(K / block), N), each for the rows of one block."""

    integers: Int8[NDArray[np.int8], "k n"]
    scales: Float32[NDArray[np.float32], "b n"]


Choose = Callable[[BlockLayer, NDArray[np.float32]], BlockWeight]
"""Layer and weight as a MatMul has it, (K, N) → what is written."""


def block_layers(graph: ir.Graph) -> Iterator[BlockLayer]:
    """Layers whose weights may have blocks, in graph order: MatMul of a constant matrix, and Gemm that is nothing else
    but one with a bias."""
    for node in graph:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        if value is None or not value.is_initializer() or value.const_value is None:
            continue
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or 0 in tensor.shape.numpy():
            continue
        if is_op(node, "MatMul"):
            transposed = False
        elif is_op(node, "Gemm") and _is_plain(node):
            transposed = node.attributes.get_int("transB", 0) != 0
        else:
            continue
        sizes = tuple(map(int, tensor.shape.numpy()))
        depth, width = sizes[::-1] if transposed else sizes
        yield BlockLayer(
            node=name_of(node), weight=required_name(value), depth=depth, width=width, transposed=transposed
        )


def _is_plain(node: ir.Node) -> bool:
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    return factors == [1.0, 1.0] and node.attributes.get_int("transA", 0) == 0


def rounded(weight: Float32[NDArray[np.float32], "k n"], bits: int, block: int) -> BlockWeight:
    """Nearest rounding (RTN).

    Args:
        weight: (K, N).
        bits: of the integers, which are signed around 0.
        block: how many rows share a scale in each column.
    """
    depth, width = weight.shape
    integers, scales = np.empty((depth, width), np.int8), np.empty((-(-depth // block), width), np.float32)
    several = max(WEIGHTS_AT_A_TIME // (block * width), 1)
    for first in range(0, len(scales), several):
        part, rows = slice(first, first + several), slice(first * block, (first + several) * block)
        given = weight[rows]
        padded = np.zeros((-(-len(given) // block) * block, width), np.float32)
        padded[: len(given)] = given
        groups = padded.reshape(-1, block, width)
        scales[part] = _scales(groups, bits)
        integers[rows] = _nearest(groups, scales[part, None], bits).reshape(-1, width)[: len(given)]
    return BlockWeight(integers=integers, scales=scales)


def inverse_factor(
    hessian: Float64[NDArray[np.float64], "k k"], *, in_place: bool = False
) -> Float64[NDArray[np.float64], "k k"]:
    """What `gptq` makes up for losses by: the upper triangular U with Uᵀ U = (H + damping)⁻¹ (equation 4).

    Args:
        hessian: (K, K) sum of x xᵀ over the inputs x of a layer; used up.
        in_place: whether it takes no other memory, where numpy takes that of four such matrices. Equal but for
            rounding.

    Raises:
        numpy.linalg.LinAlgError: It holds NaN or infinity, or is no such sum.
    """
    depth = len(hessian)
    diagonal = hessian.diagonal().copy()
    if not np.isfinite(diagonal).all():
        raise np.linalg.LinAlgError("inputs are not finite")
    dead = diagonal == 0  # no input ever has these rows: whatever they are, the outputs are the same
    hessian.flat[:: depth + 1] += np.where(dead, 1.0, DAMPING * diagonal.mean())
    if in_place:
        _invert_in_place(hessian)
        return hessian
    return np.asarray(np.linalg.cholesky(np.linalg.inv(hessian)).T)


def _invert_in_place(hessian: Float64[NDArray[np.float64], "k k"]) -> None:
    """The same by H = R Rᵀ with R upper triangular, whose inverse is U: panel by panel, with no second matrix."""
    depth = len(hessian)
    panels = [slice(first, min(first + _PANEL, depth)) for first in range(0, depth, _PANEL)]
    inverses = {}
    for part in reversed(panels):
        above, behind = slice(part.start), slice(part.stop, depth)
        hessian[: part.stop, part] -= hessian[: part.stop, behind] @ hessian[part, behind].T
        root = np.linalg.cholesky(hessian[part, part][::-1, ::-1])[::-1, ::-1]
        inverses[part.start] = np.triu(np.linalg.inv(root))
        hessian[above, part] = hessian[above, part] @ inverses[part.start].T
    for part in panels:
        above = slice(part.start)
        hessian[above, part] = -(hessian[above, above] @ (hessian[above, part] @ inverses[part.start]))
        hessian[part, part] = inverses[part.start]
        hessian[part.stop :, part] = 0


def gptq(
    weight: Float32[NDArray[np.float32], "k n"], inverse: Float64[NDArray[np.float64], "k k"], bits: int, block: int
) -> BlockWeight:
    """GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1): rows are rounded in order, and what each loses is made up
    by those behind it.

    Differs from the paper: a block of scales is also the block of lazy updates, and its scales are chosen when it is
    reached, from weights that made up for the blocks before.

    Args:
        weight: (K, N).
        inverse: (K, K) `inverse_factor` of the layer's Hessian, which layers that read the same share.
        bits, block: as for `rounded`.
    """
    depth, width = weight.shape
    integers, scales = np.zeros((depth, width), np.int8), np.empty((-(-depth // block), width), np.float32)
    several = max(COLUMNS_AT_ONCE // depth, 1)
    for first in range(0, width, several):  # columns know nothing of each other
        part = slice(first, first + several)
        _make_up(weight[:, part], inverse, bits, block, integers[:, part], scales[:, part])
    return BlockWeight(integers=integers, scales=scales)


def _make_up(
    weight: Float32[NDArray[np.float32], "k n"],
    inverse: Float64[NDArray[np.float64], "k k"],
    bits: int,
    block: int,
    integers: Int8[NDArray[np.int8], "k n"],
    scales: Float32[NDArray[np.float32], "b n"],
) -> None:
    """`gptq` of some columns, into `integers` and `scales`."""
    depth, left = len(weight), weight.astype(np.float64)
    for place, first in enumerate(range(0, depth, block)):
        rows = slice(first, min(first + block, depth))
        scales[place] = _scales(left[None, rows].astype(np.float32), bits)[0]
        lost = np.zeros((rows.stop - first, weight.shape[1]))
        for row in range(first, rows.stop):
            integers[row] = _nearest(left[row], scales[place], bits)
            lost[row - first] = (left[row] - integers[row] * scales[place].astype(np.float64)) / inverse[row, row]
            left[row + 1 : rows.stop] -= np.outer(inverse[row, row + 1 : rows.stop], lost[row - first])
        left[rows.stop :] -= inverse[rows, rows.stop :].T @ lost


def _scales(groups: Float32[NDArray[np.float32], "b r n"], bits: int) -> Float32[NDArray[np.float32], "b n"]:
    """Of each block and column the scale that rounds its rows with the least squared error."""
    greatest = np.abs(groups).max(axis=1)
    best = np.where(greatest > 0, greatest, 1.0) / (2 ** (bits - 1) - 1)
    least = np.full(greatest.shape, np.inf)
    chosen = best
    for ratio in RATIOS:
        scales = (best * ratio).astype(np.float32)
        error = np.square(_nearest(groups, scales[:, None], bits) * scales[:, None] - groups).sum(axis=1)
        chosen = np.where(error < least, scales, chosen)
        least = np.minimum(least, error)
    return np.asarray(np.maximum(chosen, np.finfo(np.float32).tiny), np.float32)


def _nearest(
    weight: Float[NDArray[np.floating], "..."], scales: Float[NDArray[np.floating], "..."], bits: int
) -> Float[NDArray[np.floating], "..."]:
    return np.clip(np.rint(weight / scales), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
