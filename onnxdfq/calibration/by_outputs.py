"""Thresholds of activations by what they cost the network's outputs.

A threshold that is best for its own tensor keeps a few large values and rounds all others more coarsely. Between two
powers of two that doubles the scale, and behind depthwise layers it costs the outputs several decibels. And what an
activation function makes next to nothing of is worth no integers at all, however far below zero it reaches.
"""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdfq.calibration.memory import BATCH_BYTES, images_within
from onnxdfq.calibration.saturation import function_behind, saturation_zero_point
from onnxdfq.calibration.screening import worth_measuring
from onnxdfq.calibration.sensitivity import MOST_NODES, measure_sensitivity, nodes_behind
from onnxdfq.images.samples import SamplesLike
from onnxdfq.model_file import batch_of
from onnxdfq.progress import Progress, Steps
from onnxdfq.recipe.choices import Scales
from passes.graph.operators import KNOWN_RANGE
from passes.quantize.plan import QuantPlan, TensorQuant

logger = logging.getLogger(__name__)

DOUBLINGS = (0, -1, 1)  # of the threshold, halved where thresholds are free; none comes first
SATURATION_DOUBLINGS = (0, -1, -2)  # of the scale, where an activation function sets the grid's lower end
GREATEST_RATIO = 0.8  # of the errors after and before; a smaller gain would follow the images at hand
ROUNDS = 8  # most activations move once at most; in front of a LayerNormalization they may go on
LEAST_BITS = 8  # with fewer, scales are tuned together with the roundings
# Of the values of all images at one point of the network, and images: what is rare has to occur among them. (Of 256
# CIFAR-size images, the first 64 lack the tails of the others: thresholds chosen by them lost 8 dB on all.)
MOST_BYTES, MOST_IMAGES, LEAST_IMAGES = 2**28, 256, 8
BATCH_SIZE = 64


def thresholds_by_outputs(
    model: ir.Model,
    plan: QuantPlan,
    pixels: SamplesLike,
    *,
    scheme: Scales = "power-of-two",
    zero_points: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, TensorQuant]:
    """Value name → its quantization with another threshold, for the activations where that helps the outputs.

    Half or twice the threshold where thresholds are powers of two, else by the square root of 2, where a grid begins
    below zero also half of all of it; taken where it lowers the outputs' error to 0.8 of what it was or less, and then
    tried again. One activation at a time is quantized, all else is float. What an estimate says is of no use is not
    measured, nor what lies far from the outputs of a network of thousands of nodes.

    Args:
        model: Float, BatchNormalization folded.
        plan: Of that model, by this scheme.
        pixels: In the model's input units, of which the first are taken (at most 256).
        scheme: Which thresholds there are.
        zero_points: Whether a grid without sign may begin below zero. What only an activation function reads then
            tries such grids too, begun where the function saturates.
        device: Where the network runs.
        progress: Called after each measurement.

    Returns:
        Only what differs from `plan`.

    Raises:
        DataError: The images do not fit the model's input.
        InputError: The model has no float output.
    """
    better: dict[str, TensorQuant] = {}
    candidates = _candidates(model, plan, scheme, zero_points, plan.activations)
    for _ in range(ROUNDS):
        if not candidates:
            break
        found = _better(candidates, _losses(model, plan, pixels, candidates, device=device, progress=progress))
        better |= found
        plan = replace(plan, activations={**plan.activations, **found})
        candidates = _candidates(model, plan, scheme, zero_points, found)
    return better


def _candidates(
    model: ir.Model, plan: QuantPlan, scheme: Scales, zero_points: bool, names: Container[str]
) -> dict[str, list[TensorQuant]]:
    """Value name → the grid that it has, and those to try; of these names."""
    unit = 0.5 if scheme == "free" else 1
    return {
        value.name or "": [
            *(quant.widened(doublings * unit) for doublings in DOUBLINGS),
            *([quant.narrowed(unit)] if quant.zero_point else ()),
            *(_from_saturation(model, value, quant, unit) if zero_points else ()),
        ]
        for value, quant in _activations(model, plan, scheme)
        if value.name in names
    }


def _better(
    candidates: Mapping[str, Sequence[TensorQuant]], losses: Mapping[str, Mapping[int, float]]
) -> dict[str, TensorQuant]:
    """Value name → the best of its candidates, where that beats the first by far enough."""
    better = {}
    for name, by_candidate in losses.items():
        index = min(by_candidate, key=by_candidate.__getitem__)
        if by_candidate[index] < GREATEST_RATIO * by_candidate[0]:
            better[name] = candidates[name][index]
            logger.debug(
                "%s: threshold %.4g, zero point %d instead of threshold %.4g: noise over signal %.3g instead of %.3g",
                name,
                candidates[name][index].threshold,
                candidates[name][index].zero_point,
                candidates[name][0].threshold,
                by_candidate[index],
                by_candidate[0],
            )
    return better


def _losses(
    model: ir.Model,
    plan: QuantPlan,
    pixels: SamplesLike,
    candidates: Mapping[str, list[TensorQuant]],
    *,
    device: str,
    progress: Progress | None,
) -> Mapping[str, Mapping[int, float]]:
    """Value name → place among its candidates → noise over signal at the outputs; only of those worth measuring."""
    plans = {
        name: {
            index: replace(plan, activations={**plan.activations, name: quant}) for index, quant in enumerate(quants)
        }
        for name, quants in candidates.items()
    }
    fixed = batch_of(model)
    count = max(min(images_within(model, MOST_BYTES), MOST_IMAGES), LEAST_IMAGES, fixed or 0)
    worth = _affordable(model, worth_measuring(model, pixels[:count], plans, device=device))
    return measure_sensitivity(
        model,
        pixels[:count],
        weights={},
        activations=worth,
        # where values are largest, few networks are measured from; further down, small batches take longer
        batch_size=fixed or min(BATCH_SIZE, images_within(model, 4 * BATCH_BYTES)),
        device=device,
        advance=Steps(progress, sum(map(len, worth.values()))),
    ).activations


def _affordable(model: ir.Model, plans: Mapping[str, Mapping[int, QuantPlan]]) -> Mapping[str, Mapping[int, QuantPlan]]:
    """Those of the plans whose measurements run no more than `MOST_NODES` together; what runs least comes first."""
    behind, kept, left = nodes_behind(model), dict[str, Mapping[int, QuantPlan]](), MOST_NODES
    for name in sorted(plans, key=lambda name: behind[name] * len(plans[name])):
        left -= behind[name] * len(plans[name])
        if left < 0:
            logger.debug("%d activations of a long network keep their thresholds unmeasured", len(plans) - len(kept))
            break
        kept[name] = plans[name]
    return kept


def _from_saturation(model: ir.Model, value: ir.Value, quant: TensorQuant, unit: float) -> Iterator[TensorQuant]:
    """Grids without sign as wide as `quant` or narrower, that begin where the function behind them saturates."""
    negative = quant.signed or quant.zero_point  # else a Relu may lie in the grid's end at zero
    function = function_behind(model, value) if negative else None
    if function is None:
        return
    for doublings in SATURATION_DOUBLINGS:
        scale = float(quant.scale) * 2.0 ** (doublings * unit)
        zero_point = saturation_zero_point(function, scale, quant.bits)
        if zero_point is not None:
            threshold = np.asarray(scale * 2**quant.bits)
            yield TensorQuant(bits=quant.bits, signed=False, threshold=threshold, zero_point=zero_point)


def _activations(model: ir.Model, plan: QuantPlan, scheme: Scales) -> Iterator[tuple[ir.Value, TensorQuant]]:
    """Activations whose range neither an image, nor a function, nor a Clip sets (on the integers, or where free grids
    have to end inside its bounds); and outputs, whose own error is what counts, stay out."""
    fixed_range = {*KNOWN_RANGE, "Clip"} if scheme == "free" else KNOWN_RANGE.keys()
    for node in model.graph:
        for value in node.outputs if node.op_type not in fixed_range else ():
            quant = plan.activations.get(value.name or "")
            if quant is None or quant.bits < LEAST_BITS or quant.clip is not None or value.is_graph_output():
                continue
            yield value, quant
