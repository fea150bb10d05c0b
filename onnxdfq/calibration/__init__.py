"""HPTQ calibration: images in, a frozen QuantPlan out. (Habi et al., arXiv 2109.09113.)"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.calibration.bias_correction import (
    corrected_bias,
    has_bias_to_set,
    on_accumulator_grid,
    with_room_for_bias,
)
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.observation import Observations, observe
from onnxdfq.calibration.shift_negative import best_shift, reader_of_shiftable
from onnxdfq.calibration.thresholds import Scheme, activation_threshold, weight_thresholds
from onnxdfq.errors import InputError
from onnxdfq.model_file import image_input
from onnxdfq.progress import Progress, Steps
from passes.power_of_two import covering_power_of_two, integer_range, scale_of
from passes.quant_plan import QuantPlan, TensorQuant
from passes.quant_points import KNOWN_RANGE, QuantPoints, find_quant_points, is_fused
from passes.shift_negative import padded_name, shifted_name
from passes.target import Target

__all__ = ["Calibration", "Scheme"]

FLOAT_BITS = 32
IMAGE_BITS = 8  # images are bytes; fewer bits would spoil what every layer sees


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Decides every threshold by squared error.

    weight_bits 2…8, per output channel; activation_bits 2…8, 16, or 32 for float, per tensor; the image input keeps at
    least 8. scheme: thresholds 2**k, or free. correct_bias: undo the mean shift of weight rounding.
    shift_negative: shift activations with a small negative tail to a grid without sign.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    scheme: Scheme = "power-of-two"
    correct_bias: bool = True
    shift_negative: bool = False
    batch_size: int = 32

    def plan(
        self,
        model: ir.Model,
        pixels: NDArray[np.float32],
        target: Target,
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> QuantPlan:
        """`observe`, then `decide`, for one target. Raises as these do."""
        observations = self.observe(model, pixels, [target], device=device, progress=progress)
        return self.decide(model, observations, target)

    def observe(
        self,
        model: ir.Model,
        pixels: NDArray[np.float32],
        targets: Sequence[Target],
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Observations:
        """What the images show: the one pass through the network, for as many targets as will decide by it.

        model: float, BatchNormalization folded; pixels (N, C, H, W) in the model's input units. Raises InputError when
        there is no weight to quantize, DataError when the images do not fit.
        """
        batch_size = image_input(model).shape[0] or self.batch_size
        step = Steps(progress, -(-len(pixels) // batch_size))
        points = [find_quant_points(model, target) for target in targets]
        if not all(found.weights for found in points):
            raise InputError(
                "The model has no Conv, ConvTranspose, Gemm or MatMul with a constant float32 weight, so there is "
                "nothing to quantize; a float16 model has to be exported in float32."
            )
        values = dict.fromkeys(name for found in points for name in found.activations)
        return observe(
            model,
            pixels,
            values=tuple(values) if self.activation_bits < FLOAT_BITS else (),
            mean_axes={_name(node.inputs[0]): 1 for found in points for node in _layers_with_bias(model, found)},
            batch_size=batch_size,
            device=device,
            step=step,
        )

    def decide(self, model: ir.Model, observed: Observations, target: Target) -> QuantPlan:
        """The plan for the graph that was observed. No image is looked at again, and nothing is edited."""
        points = find_quant_points(model, target)
        weights = {}
        for use in points.weights:
            array = _array(model, use.initializer)
            thresholds = weight_thresholds(array, self.weight_bits, self.scheme, axis=use.axis)
            weights[use.initializer] = TensorQuant(
                bits=self.weight_bits, signed=True, axis=use.axis, threshold=thresholds
            )
        layers = _layers_with_bias(model, points)
        producers = {value.name: node for node in model.graph for value in node.outputs}
        images = {value.name for value in model.graph.inputs}
        activations = {
            name: self._activation(observed.histograms[name], producers.get(name), target, image=name in images)
            for name in points.activations
            if name in observed.histograms
        }
        same_as = dict(points.same_as) if activations else {}
        shifts = self._shifts(model, observed, activations, same_as)
        biases = {}
        for node in layers:
            source, weight = _name(node.inputs[0]), _name(node.inputs[1])
            mean, shift = observed.means[source].mean * self.correct_bias, shifts.get(source, 0.0)
            bias = corrected_bias(node, weights[weight], mean, shift=shift)
            read = shifted_name(source) if source in shifts else same_as.get(source, source)
            if read in activations:
                roomy = with_room_for_bias(weights[weight], bias, activations[read])
                if roomy is not weights[weight]:  # other steps, another rounding error to correct
                    weights[weight] = roomy
                    bias = corrected_bias(node, roomy, mean, shift=shift)
                bias = on_accumulator_grid(node, bias, activations[read], weights[weight])
            biases[node.name or ""] = bias
        return QuantPlan(activations=activations, weights=weights, same_as=same_as, biases=biases, shifts=shifts)

    def _shifts(
        self, model: ir.Model, observed: Observations, activations: dict[str, TensorQuant], same_as: dict[str, str]
    ) -> dict[str, float]:
        """Value → shift; `activations` and `same_as` then speak of the shifted values instead."""
        shifts: dict[str, float] = {}
        if not self.shift_negative:
            return shifts
        for value in [value for node in model.graph for value in node.outputs if value.name in activations]:
            name, reader = _name(value), reader_of_shiftable(value)
            found = None if reader is None else best_shift(observed.histograms[name], activations[name], self.scheme)
            if reader is None or found is None:
                continue
            shifts[name] = found.amount
            del activations[name]
            activations[shifted_name(name)] = found.quant
            if any(reader.attributes.get_ints("pads", ())):
                same_as[padded_name(name)] = shifted_name(name)
        return shifts

    def _activation(
        self, histogram: Histogram, producer: ir.Node | None, target: Target, *, image: bool
    ) -> TensorQuant:
        bits = max(self.activation_bits, IMAGE_BITS) if image else self.activation_bits
        signed = histogram.least < 0
        if producer is not None and producer.op_type in KNOWN_RANGE:
            low, high = KNOWN_RANGE[producer.op_type]
            threshold = float(covering_power_of_two(max(-low, high)))
            return TensorQuant(bits=bits, signed=low < 0, threshold=np.asarray(threshold))
        clip = None if producer is None else _fused_clip(producer, target)
        limit = None
        if clip is not None and self.scheme == "free":
            # a free grid rarely has the Clip's bounds as steps; end the grid inside them, and the Clip is redundant
            least, greatest = integer_range(bits, signed=signed)
            limit = 2.0 ** (bits - signed) * min(clip[1] / greatest, clip[0] / least if signed else np.inf)
        threshold = activation_threshold(histogram, bits, self.scheme, signed=signed, limit=limit)
        scale = float(scale_of(threshold, bits, signed=signed))
        integers = None if clip is None else _on_integers(clip, scale, bits, signed)
        return TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold), clip=integers)


def _fused_clip(node: ir.Node, target: Target) -> tuple[float, float] | None:
    """The bounds of a Clip that nothing but the following QuantizeLinear separates from its producer."""
    if node.op_type != "Clip" or node.inputs[0] is None or not is_fused(node.inputs[0], target):
        return None
    bounds = [-np.inf, np.inf]
    for index in (1, 2):
        bound = node.inputs[index] if index < len(node.inputs) else None
        if bound is not None and bound.const_value is None:
            return None
        if bound is not None and bound.const_value is not None:
            bounds[index - 1] = float(bound.const_value.numpy())
    return bounds[0], bounds[1]


def _on_integers(bounds: tuple[float, float], scale: float, bits: int, signed: bool) -> tuple[int, int] | None:
    """The bounds rounded to integers of the grid. None where the float Clip has to stay, or may."""
    if bits > 8:
        return None  # runtimes know no Clip of 16-bit integers
    low, high = bounds[0] / scale, bounds[1] / scale
    least, greatest = integer_range(8, signed=signed)
    if low <= least and high >= greatest:
        return None  # it cuts nothing off that the container can hold, which the runtime sees for itself
    least, greatest = integer_range(bits, signed=signed)
    return round(min(max(low, least), greatest)), round(min(max(high, least), greatest))


def _layers_with_bias(model: ir.Model, points: QuantPoints) -> list[ir.Node]:
    """The layers with a quantized weight and a bias to write, fed by data."""
    weights = {use.initializer for use in points.weights}
    fed = set(points.activations) | set(points.same_as)
    return [
        node
        for node in model.graph
        if has_bias_to_set(node) and _name(node.inputs[1]) in weights and _name(node.inputs[0]) in fed
    ]


def _array(model: ir.Model, name: str) -> NDArray[np.float32]:
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise ValueError(f"the initializer {name} has no data")
    return tensor.numpy()


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name
