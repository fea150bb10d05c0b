"""The biases of a plan once its weights have their grids, and these grids where a bias asks for coarser ones."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.calibration.bias_correction import (
    corrected_bias,
    has_bias_to_set,
    on_accumulator_grid,
    with_room_for_bias,
)
from onnxdfq.calibration.observation import ChannelMean
from onnxdfq.calibration.shift_limits import within_shift_limits
from onnxdfq.calibration.thresholds import weight_thresholds
from onnxdfq.calibration.weights import log_coarser
from onnxdfq.recipe.choices import Scales
from passes.graph.editing import constant_value, name_of
from passes.quantize.pair_sums import within_pair_sums
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import QuantPoints
from passes.target.target import Target

logger = logging.getLogger(__name__)

BIAS_BITS = 8  # where biases have grids of their own


@dataclass(frozen=True, kw_only=True)
class BiasCorrection:
    """What the corrected bias of a layer follows from.

    means: by value name, of what layers read. enabled: whether the mean shift of weight rounding is taken back; a shift
    of the layer's input always is.
    """

    means: Mapping[str, ChannelMean]
    enabled: bool

    def bias(self, node: ir.Node, plan: QuantPlan) -> Float32[NDArray[np.float32], "o"]:
        """The bias of a layer whose weight is rounded as the plan has it."""
        source, weight = name_of(node.inputs[0]), constant_value(node.inputs[1])
        assert weight is not None
        rounded = plan.rounded_weight(name_of(node.inputs[1]), weight)
        mean = self.means[source].mean * self.enabled
        return corrected_bias(node, rounded, mean, shift=plan.shifts.get(source, 0.0))


def layers_with_bias(model: ir.Model, points: QuantPoints) -> list[ir.Node]:
    """The layers with a quantized weight and a bias to write, fed by data."""
    weights = {use.initializer for use in points.weights}
    fed = set(points.activations) | set(points.same_as)
    return [
        node
        for node in model.graph
        if has_bias_to_set(node) and name_of(node.inputs[1]) in weights and name_of(node.inputs[0]) in fed
    ]


def with_biases(
    plan: QuantPlan, model: ir.Model, layers: Iterable[ir.Node], correction: BiasCorrection, target: Target
) -> QuantPlan:
    """The plan with biases of 32 bits on the grid of the accumulator, which the weights' scales leave room for."""
    biases = {}
    for node in layers:
        source, weight = name_of(node.inputs[0]), name_of(node.inputs[1])
        bias = correction.bias(node, plan)
        read = plan.read_quant(source)
        if read is not None:
            roomy = with_room_for_bias(plan.weights[weight], bias, read)
            if roomy is not plan.weights[weight]:
                before, plan = plan, within_pair_sums(model, plan.with_weight(weight, roomy), target, [node])
                log_coarser(before, plan, f"to make room for the bias of {node.name}")
                bias = correction.bias(node, plan)  # other scales, another rounding error to correct
            bias = on_accumulator_grid(node, bias, read, plan.weights[weight])
        biases[name_of(node)] = bias
    return replace(plan, biases=biases)


def with_short_biases(
    plan: QuantPlan,
    model: ir.Model,
    layers: Iterable[ir.Node],
    correction: BiasCorrection,
    target: Target,
    *,
    scheme: Scales,
) -> QuantPlan:
    """The plan with biases on 8-bit grids of their own, and all scales within the limits of the target's shifts.

    Raises:
        InputError: No scales are within these limits; names the node where they contradict each other.
    """
    layers = list(layers)
    while True:
        biases = {name_of(node): correction.bias(node, plan) for node in layers}
        quants = {
            name: TensorQuant(
                bits=BIAS_BITS, signed=True, threshold=weight_thresholds(bias, BIAS_BITS, scheme, axis=None)
            )
            for name, bias in biases.items()
        }
        plan = replace(plan, biases=biases, bias_quants=quants)
        if not target.shift_limits:
            return plan
        limited = within_shift_limits(model, plan, target)
        if all(limited.weights[name] is quant for name, quant in plan.weights.items()):
            return limited
        log_coarser(plan, limited, f"for the shifts of {target.title}")
        plan = limited  # coarser weights, another rounding error to correct
