"""`CompensationPlan`: the numbers of DF-MPC; the pass that writes them; and the integers of the folded model."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Int8, Shaped
from numpy.typing import NDArray

from passes.dfmpc.low_bit import Integers, channels_first, row_chunks, rows_as_weight, weight_rows
from passes.graph.affine import Array, write_layer
from passes.graph.editing import FreshNames, as_float64, changed, constant_value, name_of, set_constant_input
from passes.quantize.plan import TensorQuant

logger = logging.getLogger(__name__)

ROUNDING_TOLERANCE = 1e-5  # of a row's greatest weight: the error of rounding to float32 twice


@dataclass(frozen=True, kw_only=True, eq=False)
class LowBitWeight:
    """A weight on its grid: signed integers of `bits` bits in the weight's shape. scale: (O,) per output channel."""

    bits: int
    integers: Int8[Integers, "_ _ ..."]
    scale: Float64[Array, "o"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NormNumbers:
    """The parameters of a BatchNormalization."""

    scale: Float64[Array, "c"]
    bias: Float64[Array, "c"]
    mean: Float64[Array, "c"]
    var: Float64[Array, "c"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CompensationPlan:
    """All numbers that CompensateWeights writes, by node name.

    weights, biases: of layers. norms: of BatchNormalizations.
    coefficients: of the low layers that have any, (O,) c for each BatchNormalization behind them. Information only:
        `norms` contains them already.
    notes: sentences for the user.
    """

    weights: Mapping[str, LowBitWeight]
    norms: Mapping[str, NormNumbers]
    biases: Mapping[str, Float64[Array, "_"]]
    coefficients: Mapping[str, tuple[Float64[Array, "_"], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedWeight:
    """A weight of the folded model. integers: in the weight's shape. quant: bits, and a scale per output channel."""

    quant: TensorQuant
    integers: Int8[Integers, "_ _ ..."]


class CompensateWeights(ir.passes.InPlacePass):
    """Writes a CompensationPlan into a float graph: dequantized weights, BatchNormalizations, biases."""

    def __init__(self, plan: CompensationPlan) -> None:
        self.plan = plan

    def requires(self, model: ir.Model) -> None:
        """Every name of the plan must stand in the graph."""
        planned = {*self.plan.weights, *self.plan.norms, *self.plan.biases}
        if missing := planned - {node.name for node in model.graph}:
            raise ir.passes.PreconditionError(f"the plan names nodes that the graph lacks: {sorted(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names = FreshNames(model.graph)
        for node in model.graph:
            name = name_of(node)
            if (weight := self.plan.weights.get(name)) is not None:
                new = changed(node.inputs[1], partial(_dequantized, node, weight))
                set_constant_input(node, 1, new, names, f"{name}.weight")
                logger.debug("%s %s has a weight of %d bits", node.op_type, name, weight.bits)
            if (bias := self.plan.biases.get(name)) is not None:
                write_layer(node, names, bias=bias)
                logger.debug("%s %s has its bias corrected", node.op_type, name)
            if (norm := self.plan.norms.get(name)) is not None:
                for index, part in enumerate(("scale", "bias", "mean", "var"), start=1):
                    _set(node, index, getattr(norm, part), names, f"{name}.{part}")
                logger.debug("BatchNormalization %s is recalibrated", name)
        return ir.passes.PassResult(model, modified=bool(self.plan.weights))


def _dequantized(node: ir.Node, weight: LowBitWeight, _: Shaped[NDArray[Any], "..."]) -> Shaped[NDArray[Any], "..."]:
    rows = weight_rows(node, weight.integers) * weight.scale[:, None].astype(np.float32)
    return rows_as_weight(node, rows, weight.integers.shape)


def _set(node: ir.Node, index: int, array: Shaped[NDArray[Any], "..."], names: FreshNames, base: str) -> None:
    old = constant_value(node.inputs[index])
    assert old is not None
    set_constant_input(node, index, array.astype(old.dtype), names, base)


def quantized_weights(model: ir.Model, plan: CompensationPlan) -> dict[str, QuantizedWeight]:
    """The integers and grids of the plan's weights after FoldBatchNorm, by initializer name.

    Folding multiplies each output channel by a number, which goes into its scale; where it is negative, the integers
    change their sign.

    Raises:
        ValueError: a weight is no longer its integers times a scale per output channel, because something was folded
            into its inputs.
    """
    found = {}
    for node in model.graph:
        planned = plan.weights.get(name_of(node))
        if planned is None or (value := node.inputs[1]) is None or (weight := constant_value(value)) is None:
            continue
        rows, integers = weight_rows(node, weight), weight_rows(node, planned.integers)
        scale = np.concatenate([_scale_of(*part) for part in _chunks(rows, integers)])
        if np.isnan(scale).any():
            raise ValueError(
                f"The weight of {node.op_type} '{node.name}' is not its planned integers times a scale per output "
                "channel: nothing but BatchNormalizations behind it may be folded between planning and quantization."
            )
        if (scale <= 0).any():
            integers = integers * np.sign(scale).astype(np.int8)[:, None]
        scale = np.where(scale == 0, 1.0, np.abs(scale))
        axis, greatest = int(not channels_first(node)), 2 ** (planned.bits - 1) - 1
        quant = TensorQuant(
            bits=planned.bits,
            signed=True,
            axis=axis,
            threshold=scale * (greatest + 1.0),
            clip=(-greatest, greatest),  # two bits are ternary, and a channel may have changed its sign
        )
        written = rows_as_weight(node, integers, weight.shape)
        found[name_of(value)] = QuantizedWeight(quant=quant, integers=written)
    return found


def _chunks(
    rows: Shaped[NDArray[Any], "o d"], integers: Int8[Integers, "o d"]
) -> Iterator[tuple[Float64[Array, "c d"], Float64[Array, "c d"]]]:
    """Some rows of both at a time, in float64."""
    for some, whole in zip(row_chunks(rows), row_chunks(integers), strict=True):
        yield as_float64(some), as_float64(whole)


def _scale_of(rows: Float64[Array, "c d"], integers: Float64[Array, "c d"]) -> Float64[Array, "c"]:
    """(C,) what each row is of its integers; NaN where it is no multiple of them."""
    square = np.square(integers).sum(axis=1)
    scale = np.divide((rows * integers).sum(axis=1), square, out=np.zeros_like(square), where=square > 0)
    off = np.abs(rows - integers * scale[:, None]) > ROUNDING_TOLERANCE * np.abs(rows).max(axis=1, keepdims=True)
    return np.where(off.any(axis=1), np.nan, scale)
