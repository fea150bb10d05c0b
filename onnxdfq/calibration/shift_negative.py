"""Shift-negative correction (HPTQ): a small negative tail costs a whole bit; shifted above zero it costs nothing.

HPTQ shifts where |min| / t stays below a ratio. Here the histogram decides: a shift is taken where it lowers the
squared error.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdfq.calibration.bias_correction import has_bias_to_set
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_candidates, squared_error
from passes.graph.editing import sole_consumer
from passes.quantize.grid import scale_of
from passes.quantize.plan import TensorQuant, even_zero_point

NEGATIVE_TAILS = frozenset({"Celu", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Mul", "Selu", "Swish"})


@dataclass(frozen=True, kw_only=True)
class Shift:
    """A value's shift, in its own unit, and how the shifted value is quantized."""

    amount: float
    quant: TensorQuant


def reader_of_shiftable(value: ir.Value) -> ir.Node | None:
    """The one layer that reads a value with a negative tail and can take a shift back; None where there is none."""
    producer, reader = value.producer(), sole_consumer(value)
    if producer is None or reader is None or producer.op_type not in NEGATIVE_TAILS or reader.inputs[0] is not value:
        return None
    # a transposed convolution meets its border with fewer taps, so a constant does not come out constant;
    # a padding that the runtime works out is none that a Pad could take over
    known = reader.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return reader if reader.op_type in ("Conv", "Gemm") and known and has_bias_to_set(reader) else None


def best_zero_point(histogram: Histogram, quant: TensorQuant, scheme: str) -> TensorQuant | None:
    """The grid without sign, begun below zero by as much as values do, that beats `quant`; None when none does."""
    if not quant.signed:
        return None
    points, counts = histogram.points()
    best, least = None, squared_error(points, counts, quant)
    for threshold in activation_candidates(points - histogram.least, quant.bits, scheme):
        zero_point = even_zero_point(-histogram.least / float(scale_of(threshold, quant.bits, signed=False)))
        if not 0 < zero_point < 2**quant.bits:
            continue
        found = TensorQuant(bits=quant.bits, signed=False, threshold=np.asarray(threshold), zero_point=zero_point)
        error = squared_error(points, counts, found)
        if error < least:
            best, least = found, error
    return best


def best_shift(histogram: Histogram, quant: TensorQuant, scheme: str) -> Shift | None:
    """The shift to a grid without sign that beats `quant`; None when none does."""
    found = best_zero_point(histogram, quant, scheme)
    if found is None:
        return None
    return Shift(amount=found.zero_point * float(found.scale), quant=replace(found, zero_point=0))
