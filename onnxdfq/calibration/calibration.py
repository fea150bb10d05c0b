"""HPTQ calibration: images in, a frozen QuantPlan out. (Habi et al., arXiv 2109.09113.)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxdfq.calibration.bias_correction import (
    corrected_bias,
    has_bias_to_set,
    on_accumulator_grid,
    with_room_for_bias,
)
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.observation import Observations, observe
from onnxdfq.calibration.shift_limits import within_shift_limits
from onnxdfq.calibration.shift_negative import NEGATIVE_TAILS, best_shift, best_tail, reader_of_shiftable
from onnxdfq.calibration.thresholds import activation_threshold, weight_thresholds
from onnxdfq.errors import InputError
from onnxdfq.model_file import image_input
from onnxdfq.progress import Progress, Steps
from onnxdfq.recipe.bits import FLOAT_BITS, LayerBits, check_layers
from onnxdfq.recipe.choices import Clipping, Scheme
from passes.graph.editing import constant_value, initializer_array
from passes.graph.operators import KNOWN_RANGE
from passes.quantize.grid import covering_power_of_two, integer_range, scale_of
from passes.quantize.pair_sums import within_pair_sums
from passes.quantize.plan import QuantPlan, TensorQuant, padded_name, shifted_name
from passes.quantize.points import (
    QuantPoints,
    WeightUse,
    data_input,
    find_quant_points,
    is_fused,
    scales_channels,
)
from passes.target.target import Target

BIAS_BITS = 8  # where biases have grids of their own
IMAGE_BITS = 8  # images are bytes; fewer bits would spoil what every layer sees
CONSTANT_BITS = 8  # of what scales or shifts a whole channel; there is little of it


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Decides every threshold by squared error, within what the target takes.

    weight_bits 2…8, per output channel or per tensor, as the target has it; activation_bits 2…8, 16, or 32 for float,
    per tensor; the image input keeps at least 8. scheme: thresholds 2**k, 2**k for activations only, or free.
    clipping: how thresholds are found (see `thresholds`). correct_bias: undo the mean shift of weight rounding.
    shift_negative: shift activations with a small negative tail to a grid without sign. layer_bits: by node name, what
    single layers have instead of weight_bits, and what they read instead of activation_bits.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    scheme: Scheme = "power-of-two"
    clipping: Clipping = "mse"
    correct_bias: bool = True
    shift_negative: bool = False
    layer_bits: Mapping[str, LayerBits] = field(default_factory=dict)
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

    def decide(
        self,
        model: ir.Model,
        observed: Observations,
        target: Target,
        *,
        decided: Mapping[str, TensorQuant] = MappingProxyType({}),
    ) -> QuantPlan:
        """The plan for the graph that was observed. No image is looked at again, and nothing is edited.

        decided: what is settled elsewhere; by initializer, of weights that lie on their grids already (a grid that
        leaves no room for its bias is widened none the less), and by value name, of activations.
        Raises InputError when the target refuses the bits, the scheme or the shift to grids without sign, and when
        `layer_bits` names what is no layer, or gives one activation two widths.
        """
        self.check(target)
        points = find_quant_points(model, target)
        activation_bits = self.activation_widths(model, points)
        weights = {
            use.initializer: decided.get(use.initializer) or self._weight(model, use, target) for use in points.weights
        }
        layers = _layers_with_bias(model, points)
        producers = {value.name: node for node in model.graph for value in node.outputs}
        images = {value.name for value in model.graph.inputs}
        activations = {
            name: decided.get(name)
            or self._activation(
                observed.histograms[name], producers.get(name), target, activation_bits[name], image=name in images
            )
            for name in points.activations
            if name in observed.histograms
        }
        same_as = dict(points.same_as) if activations else {}
        constants = {
            name: self._constant(initializer_array(model.graph, name), target)
            for name in points.constants
            if activations
        }
        shifts = self._shifts(model, observed, activations, same_as) if self.shift_negative else {}
        plan = QuantPlan(activations=activations, weights=weights, constants=constants, same_as=same_as, shifts=shifts)
        plan = within_pair_sums(model, plan, target)
        if target.bias == "int8":
            return self._with_short_biases(model, layers, observed, plan, target)
        return self._with_biases(model, layers, observed, plan, target)

    def check(self, target: Target) -> None:
        """Raises InputError when the target refuses the bits, the scheme or the shift to grids without sign."""
        pins = self.layer_bits.values()
        for what, asked, taken in (
            ("weights", (self.weight_bits, *(pin.weight for pin in pins)), target.weight_bits),
            ("activations", (self.activation_bits, *(pin.activation for pin in pins)), target.activation_bits),
        ):
            for bits in asked:
                if bits is not None and bits not in taken:
                    raise InputError(
                        f"The target {target.name} ({target.title}) takes {what} of {_listed(taken)} bits, not of "
                        f"{bits}; ask for other --bits or another --target."
                    )
        if target.power_of_two and self.scheme != "power-of-two":
            raise InputError(
                f"The target {target.name} takes power-of-two scales only, not --scheme {self.scheme}; "
                "leave --scheme out, or choose another --target."
            )
        if self.shift_negative and target.unsigned_activations == "none":
            raise InputError(
                f"The target {target.name} has no grids without sign, and --shift-negative is for these; leave it out."
            )

    def takes_tails(self, target: Target) -> bool:
        """Whether grids without sign may begin below zero."""
        return target.zero_points == "any" and not self.shift_negative

    def shiftable(self, model: ir.Model, observed: Observations, plan: QuantPlan) -> int:
        """How many activations `shift_negative` would take to a grid without sign that are on one with a sign."""
        return len(self._shifts(model, observed, dict(plan.activations), dict(plan.same_as)))

    def activation_widths(self, model: ir.Model, points: QuantPoints) -> dict[str, int]:
        """Value name → bits, as `layer_bits` asks for what layers read; an image input may get more.

        Raises InputError when `layer_bits` names what is no layer, or gives one activation two widths.
        """
        check_layers(self.layer_bits, points)
        nodes = {node.name: node for node in model.graph}
        bits = dict.fromkeys(points.activations, self.activation_bits)
        asked: dict[str, str] = {}
        for use in points.weights:
            pin = self.layer_bits.get(use.node)
            if pin is None or pin.activation is None or self.activation_bits == FLOAT_BITS:
                continue
            source = data_input(nodes[use.node], use)
            root = points.same_as.get(source, source)
            if root in asked and bits[root] != pin.activation:
                raise InputError(
                    f"The layers {asked[root]!r} and {use.node!r} read the same values, so they share the width of "
                    f"the activation; {bits[root]} and {pin.activation} bits are asked for."
                )
            asked[root] = use.node
            bits[root] = pin.activation
        return bits

    def default_bits(self, *, scales: bool) -> int:
        """Of a weight that nothing pins; one that holds a number per channel is a constant more than a weight."""
        return max(self.weight_bits, CONSTANT_BITS) if scales else self.weight_bits

    def _weight(self, model: ir.Model, use: WeightUse, target: Target) -> TensorQuant:
        axis, narrow = use.axis if target.per_channel_weights else None, target.narrow_weights
        pin = self.layer_bits.get(use.node)
        bits = self.default_bits(scales=use.scales) if pin is None or pin.weight is None else pin.weight
        # of one number every step is as good that happens to hit it; the least leaves the bias the finest grid
        clipping = "max" if use.scales else self.clipping
        thresholds = weight_thresholds(
            initializer_array(model.graph, use.initializer),
            bits,
            self.scheme,
            axis=axis,
            narrow=narrow,
            clipping=clipping,
        )
        least, greatest = integer_range(bits, signed=True)
        clip = (least + 1, greatest) if narrow else None
        return TensorQuant(bits=bits, signed=True, axis=axis, threshold=thresholds, clip=clip)

    def _constant(self, array: NDArray[np.float32], target: Target) -> TensorQuant:
        """One grid for the whole of what an element-wise operator combines with activations."""
        histogram, bits = Histogram(), max(self.activation_bits, CONSTANT_BITS)
        histogram.add(torch.tensor(array))
        signed = histogram.least < 0 or target.unsigned_activations == "none"
        threshold = activation_threshold(histogram, bits, self.scheme, signed=signed, limit=None)
        return TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold))

    def _with_biases(
        self, model: ir.Model, layers: list[ir.Node], observed: Observations, plan: QuantPlan, target: Target
    ) -> QuantPlan:
        """Biases on the grid of the accumulator, which the weights' steps leave room for."""
        biases = {}
        for node in layers:
            source, weight = _name(node.inputs[0]), _name(node.inputs[1])
            bias = self._bias(node, observed, plan)
            read = plan.read_quant(source)
            if read is not None:
                roomy = with_room_for_bias(plan.weights[weight], bias, read)
                if roomy is not plan.weights[weight]:
                    plan = within_pair_sums(model, plan.with_weight(weight, roomy), target)
                    bias = self._bias(node, observed, plan)  # other steps, another rounding error to correct
                bias = on_accumulator_grid(node, bias, read, plan.weights[weight])
            biases[node.name or ""] = bias
        return replace(plan, biases=biases)

    def _with_short_biases(
        self, model: ir.Model, layers: list[ir.Node], observed: Observations, plan: QuantPlan, target: Target
    ) -> QuantPlan:
        """Biases on 8-bit grids of their own, and all scales within the limits of the target's shifts."""
        while True:
            biases = {node.name or "": self._bias(node, observed, plan) for node in layers}
            quants = {
                name: TensorQuant(
                    bits=BIAS_BITS, signed=True, threshold=weight_thresholds(bias, BIAS_BITS, self.scheme, axis=None)
                )
                for name, bias in biases.items()
            }
            plan = replace(plan, biases=biases, bias_quants=quants)
            if not target.shift_limits:
                return plan
            limited = within_shift_limits(model, plan, target)
            if all(limited.weights[name] is quant for name, quant in plan.weights.items()):
                return limited
            plan = limited  # coarser weights, another rounding error to correct

    def _bias(self, node: ir.Node, observed: Observations, plan: QuantPlan) -> NDArray[np.float32]:
        source, weight = _name(node.inputs[0]), constant_value(node.inputs[1])
        assert weight is not None
        rounded = plan.rounded_weight(_name(node.inputs[1]), weight)
        mean = observed.means[source].mean * self.correct_bias
        return corrected_bias(node, rounded, mean, shift=plan.shifts.get(source, 0.0))

    def _shifts(
        self, model: ir.Model, observed: Observations, activations: dict[str, TensorQuant], same_as: dict[str, str]
    ) -> dict[str, float]:
        """Value → shift; `activations` and `same_as` then speak of the shifted values instead."""
        shifts: dict[str, float] = {}
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
        self, histogram: Histogram, producer: ir.Node | None, target: Target, bits: int, *, image: bool
    ) -> TensorQuant:
        bits = max(bits, IMAGE_BITS) if image else bits
        only_signed = target.unsigned_activations == "none"
        signed = histogram.least < 0 or only_signed
        if producer is not None and producer.op_type in KNOWN_RANGE:
            low, high = KNOWN_RANGE[producer.op_type]
            threshold = float(covering_power_of_two(max(-low, high)))
            return TensorQuant(bits=bits, signed=low < 0 or only_signed, threshold=np.asarray(threshold))
        clip = None if producer is None else _fused_clip(producer, target)
        limit = None
        if clip is not None and self.scheme == "free":
            # a free grid rarely has the Clip's bounds as steps; end the grid inside them, and the Clip is redundant
            least, greatest = integer_range(bits, signed=signed)
            limit = 2.0 ** (bits - signed) * min(clip[1] / greatest, clip[0] / least if signed else np.inf)
        threshold = activation_threshold(
            histogram, bits, self.scheme, signed=signed, limit=limit, clipping=self.clipping
        )
        scale = float(scale_of(threshold, bits, signed=signed))
        moved = clip if target.small_ranges == "clip" else None
        integers = None if moved is None else _on_integers(moved, scale, bits, signed)
        quant = TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold), clip=integers)
        if not self.takes_tails(target) or self.clipping != "mse" or clip is not None:
            return quant
        # a normalization that no layer takes in stands behind an activation function, and sums take after their parts
        skewed = producer is not None and (
            producer.op_type in NEGATIVE_TAILS | {"Add", "BatchNormalization"} or scales_channels(producer)
        )
        return (best_tail(histogram, quant, self.scheme) if skewed else None) or quant


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


def _listed(numbers: Sequence[int]) -> str:
    """[4, 8, 16] → "4, 8 or 16"."""
    return " or ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name
