"""The grid of one activation: its threshold by the histogram, within what its producer and the target set."""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.shift_negative import NEGATIVE_TAILS, best_zero_point
from onnxdfq.calibration.thresholds import activation_threshold, squared_error
from onnxdfq.recipe.choices import Clipping, Scales
from onnxdfq.recipe.tensors import TensorPin
from passes.graph.operators import KNOWN_RANGE
from passes.quantize.grid import covering_power_of_two, integer_range
from passes.quantize.plan import TensorQuant
from passes.quantize.points import Fusion, scales_channels
from passes.target.target import Target

# Of what enters and leaves the network: images are bytes, and fewer bits would spoil what every layer reads; runtimes
# give bytes, and at 3 bits most images have several classes of one greatest score (the scores of ResNet-20 at w3a3, on
# images of another seed: 9.4 dB for 7.7).
BOUNDARY_BITS = 8


MOST_FOR_A_CLIP = 2.0  # times the squared error that a grid may have which ends inside a Clip's bounds


@dataclass(frozen=True, kw_only=True)
class ActivationGrids:
    """Grids of activations, one to a tensor, as a target takes them.

    fusion: what the target merges of the graph at hand. scheme: which thresholds there are. clipping: how one is found
    (see `thresholds`). zero_points: whether a grid without sign may begin below zero.
    """

    target: Target
    fusion: Fusion
    scheme: Scales
    clipping: Clipping
    zero_points: bool

    def quant(self, histogram: Histogram, producer: ir.Node | None, bits: int) -> TensorQuant:
        """The grid of an activation that `producer` computes; None for an input of the graph.

        1. The range of a function whose range is known (Sigmoid, Softmax, ...) is taken as it is.
        2. A Clip that the target computes together with the quantization bounds the threshold, or the integers.
        3. Else the histogram decides; where it is skewed, also whether the grid begins below zero.
        """
        only_signed = self.target.unsigned_activations == "none"
        if producer is not None and producer.op_type in KNOWN_RANGE:
            low, high = KNOWN_RANGE[producer.op_type]
            threshold = float(covering_power_of_two(max(-low, high)))
            return TensorQuant(bits=bits, signed=low < 0 or only_signed, threshold=np.asarray(threshold))
        signed = histogram.least < 0 or only_signed
        bounds = None if producer is None else _fused_clip(producer, self.fusion)
        quant = TensorQuant(
            bits=bits, signed=signed, threshold=np.asarray(self._threshold(histogram, bounds, bits, signed=signed))
        )
        below = bounds is not None and -np.inf < bounds[0] < 0
        if self.zero_points and self.clipping == "mse" and (below or (bounds is None and _is_skewed(producer))):
            quant = best_zero_point(histogram, quant, self.scheme) or quant
        if bounds is not None and self.target.small_ranges == "clip":
            quant = replace(quant, clip=_on_integers(bounds, quant))
        return quant

    def pinned(self, pin: TensorPin, producer: ir.Node | None, bits: int) -> TensorQuant:
        """The grid that somebody decided. bits: where the pin says none."""
        bounds = None if producer is None else _fused_clip(producer, self.fusion)
        quant = pin.quant(bits, axis=None)
        if bounds is not None and self.target.small_ranges == "clip":
            quant = replace(quant, clip=_on_integers(bounds, quant))
        return quant

    def _threshold(self, histogram: Histogram, bounds: tuple[float, float] | None, bits: int, *, signed: bool) -> float:
        """By the histogram; a free one ends inside the bounds of a Clip where that costs next to nothing."""

        def found(limit: float | None) -> float:
            return activation_threshold(
                histogram, bits, self.scheme, signed=signed, limit=limit, clipping=self.clipping
            )

        threshold = found(None)
        if bounds is None or self.scheme != "free":
            return threshold
        within = found(_greatest_within(bounds, bits, signed=signed))
        points, counts = histogram.points()
        errors = [
            squared_error(points, counts, TensorQuant(bits=bits, signed=signed, threshold=np.asarray(one)))
            for one in (threshold, within)
        ]
        return within if errors[1] <= MOST_FOR_A_CLIP * errors[0] else threshold


def _is_skewed(producer: ir.Node | None) -> bool:
    """Whether few values may be negative: behind an activation function, or what may stand right behind one.

    A normalization that no layer takes in stands there, and sums take after their parts.
    """
    if producer is None:
        return False
    return producer.op_type in NEGATIVE_TAILS | {"Add", "BatchNormalization"} or scales_channels(producer)


def _fused_clip(node: ir.Node, fusion: Fusion) -> tuple[float, float] | None:
    """The bounds of a Clip that nothing but the following QuantizeLinear separates from its producer."""
    if node.op_type != "Clip" or node.inputs[0] is None or not fusion.is_fused(node.inputs[0]):
        return None
    bounds = [-np.inf, np.inf]
    for index in (1, 2):
        bound = node.inputs[index] if index < len(node.inputs) else None
        if bound is not None and bound.const_value is None:
            return None
        if bound is not None and bound.const_value is not None:
            bounds[index - 1] = float(bound.const_value.numpy())
    return bounds[0], bounds[1]


def _greatest_within(bounds: tuple[float, float], bits: int, *, signed: bool) -> float:
    """The greatest threshold whose grid ends inside the bounds.

    A free grid rarely has the Clip's bounds as points; one that ends inside them makes the Clip redundant.
    """
    least, greatest = integer_range(bits, signed=signed)
    return 2.0 ** (bits - signed) * min(bounds[1] / greatest, bounds[0] / least if signed else np.inf)


def _on_integers(bounds: tuple[float, float], quant: TensorQuant) -> tuple[int, int] | None:
    """The bounds rounded to integers of the grid. None where the float Clip has to stay, or may."""
    if quant.bits > 8:
        return None  # runtimes know no Clip of 16-bit integers
    low, high = (bound / float(quant.scale) for bound in bounds)
    least, greatest = (end - quant.zero_point for end in integer_range(8, signed=quant.signed))
    if low <= least and high >= greatest:
        return None  # it cuts nothing off that the container can hold, and the runtime finds that out by itself
    least, greatest = (end - quant.zero_point for end in integer_range(quant.bits, signed=quant.signed))
    return round(min(max(low, least), greatest)), round(min(max(high, least), greatest))
