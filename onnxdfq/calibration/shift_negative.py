"""Shift-negative correction (HPTQ): a small negative tail costs a whole bit; shifted above zero it costs nothing.

HPTQ shifts where |min| / t stays below a ratio. Here the histogram decides: a shift is taken where it lowers the
squared error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdfq.calibration.bias_correction import has_bias_to_set
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_candidates, squared_error
from onnxdfq.recipe.choices import Scales
from passes.graph.editing import sole_consumer
from passes.quantize.grid import scale_of
from passes.quantize.plan import QuantPlan, TensorQuant, even_zero_point, padded_name, shifted_name

NEGATIVE_TAILS = frozenset({"Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Mul", "Selu", "Swish"})


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What is added to a value so that it is nowhere negative.

    amount: in the value's own unit. quant: the grid of the shifted value. padded: whether the layer that reads it pads,
    so that the shifted value with its border is one more value.
    """

    amount: float
    quant: TensorQuant
    padded: bool


def find_shifts(
    model: ir.Model, histograms: Mapping[str, Histogram], activations: Mapping[str, TensorQuant], scheme: Scales
) -> dict[str, Shift]:
    """Every shift to a grid without sign that beats the grid an activation has; by value name, in graph order.

    Args:
        model: Float, as it was observed.
        histograms: By value name, of `activations` at least.
        activations: By value name, the grids to beat.
        scheme: Which thresholds there are.
    """
    shifts = {}
    for value in [value for node in model.graph for value in node.outputs]:
        name, reader = value.name or "", reader_of_shiftable(value)
        if name not in activations or reader is None:
            continue
        quant = best_zero_point(histograms[name], activations[name], scheme)
        if quant is not None:
            shifts[name] = Shift(
                amount=quant.zero_point * float(quant.scale),
                quant=replace(quant, zero_point=0),
                padded=any(reader.attributes.get_ints("pads", ())),
            )
    return shifts


def with_shifts(plan: QuantPlan, shifts: Mapping[str, Shift]) -> QuantPlan:
    """The plan with the shifted values in place of those that are shifted."""
    unshifted = {name: quant for name, quant in plan.activations.items() if name not in shifts}
    return replace(
        plan,
        activations=unshifted | {shifted_name(name): shift.quant for name, shift in shifts.items()},
        same_as={**plan.same_as, **{padded_name(name): shifted_name(name) for name in shifts if shifts[name].padded}},
        shifts={name: shift.amount for name, shift in shifts.items()},
    )


def reader_of_shiftable(value: ir.Value) -> ir.Node | None:
    """The one layer that reads a value with a negative tail and can take a shift back; None where there is none."""
    producer, reader = value.producer(), sole_consumer(value)
    if producer is None or reader is None or producer.op_type not in NEGATIVE_TAILS or reader.inputs[0] is not value:
        return None
    # a transposed convolution meets its border with fewer taps, so a constant does not come out constant;
    # a padding that the runtime works out is none that a Pad could take over
    explicit = reader.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return reader if reader.op_type in ("Conv", "Gemm") and explicit and has_bias_to_set(reader) else None


def best_zero_point(histogram: Histogram, quant: TensorQuant, scheme: Scales) -> TensorQuant | None:
    """The grid without sign, begun below zero by as much as values do, that beats a grid with sign.

    Args:
        histogram: Of the activation.
        quant: The grid to beat.
        scheme: Which thresholds there are.

    Returns:
        The grid with the least squared error; None where none has less than `quant`, or that has no sign itself.
    """
    if not quant.signed:
        return None
    points, counts = histogram.points()
    best, least = None, squared_error(points, counts, quant)
    for threshold in activation_candidates(points - histogram.least, quant.bits, scheme):
        zero_point = even_zero_point(-histogram.least / float(scale_of(threshold, quant.bits, signed=False)))
        if not 0 < zero_point < 2**quant.bits:
            continue
        candidate = TensorQuant(bits=quant.bits, signed=False, threshold=np.asarray(threshold), zero_point=zero_point)
        error = squared_error(points, counts, candidate)
        if error < least:
            best, least = candidate, error
    return best
