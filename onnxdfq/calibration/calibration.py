"""HPTQ calibration: images in, a frozen QuantPlan out (Habi et al., arXiv 2109.09113)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import onnx_ir as ir
from torch import Tensor

from onnxdfq.calibration.activations import BOUNDARY_BITS, ActivationGrids
from onnxdfq.calibration.biases import BiasCorrection, layers_with_bias, with_biases, with_short_biases
from onnxdfq.calibration.observation import Observations, observe, observe_runs
from onnxdfq.calibration.pins import check_pinned_activation, check_pinned_weight
from onnxdfq.calibration.shift_negative import find_shifts, with_shifts
from onnxdfq.calibration.weights import CONSTANT_BITS, constant_quant, log_coarser, weight_quant
from onnxdfq.errors import InputError
from onnxdfq.images.samples import SamplesLike
from onnxdfq.model_file import batch_of
from onnxdfq.progress import Progress, Steps
from onnxdfq.recipe.bits import FLOAT_BITS, LayerBits, check_layers
from onnxdfq.recipe.choices import Clipping, Scales
from onnxdfq.recipe.tensors import TensorPin
from passes.graph.bodies import bodies_with_layers
from passes.graph.editing import initializer_array, is_op, name_of
from passes.quantize.pair_sums import within_pair_sums
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import Fusion, QuantPoints, WeightUse, data_input, find_quant_points
from passes.target.target import Target

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Decides every threshold by squared error, within what the target takes.

    Args:
        weight_bits: 2 to 8, per output channel or per tensor, as the target has it.
        activation_bits: 2 to 8, 16, or 32 for float, per tensor; inputs of the network, and outputs that no layer
            reads, keep at least 8.
        scheme: Thresholds 2**k, 2**k for activations only, or free.
        only_activated: Whether of activations only those are quantized that a Relu or Clip gives, as papers on
            generators do it.
        clipping: How thresholds are found (see `thresholds`).
        correct_bias: Whether biases take back the mean shift of weight rounding.
        shift_negative: Whether activations with a small negative tail are shifted to a grid without sign.
        layer_bits: By node name, what single layers have instead of weight_bits, and what they read instead of
            activation_bits.
        tensors: By name of a value or weight, grids that are taken as they are; a weight's is made coarser where its
            kernel would saturate, or its bias finds no room.
        batch_size: Images at once, where the model leaves it open.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    scheme: Scales = "power-of-two"
    only_activated: bool = False
    clipping: Clipping = "mse"
    correct_bias: bool = True
    shift_negative: bool = False
    layer_bits: Mapping[str, LayerBits] = field(default_factory=dict)
    tensors: Mapping[str, TensorPin] = field(default_factory=dict)
    batch_size: int = 32

    def plan(
        self,
        model: ir.Model,
        pixels: SamplesLike,
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
        pixels: SamplesLike,
        targets: Sequence[Target],
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Observations:
        """Statistics of the network's values: the one pass of the images, for as many targets as will decide by it.

        Args:
            model: Float, BatchNormalization folded.
            pixels: In the model's input units.
            targets: Those that `decide` will be called for.
            device: Where the network runs.
            progress: Called after each batch.

        Raises:
            InputError: There is no weight to quantize.
            DataError: The images do not fit the model.
        """
        values, mean_axes = self._wanted(model, targets)
        if not all(find_quant_points(model, target).weights for target in targets) and not bodies_with_layers(model):
            raise InputError(
                "The model has no Conv, ConvTranspose, Gemm or MatMul with a constant float32 weight, so there is "
                "nothing to quantize."
            )
        batch_size = batch_of(model) or self.batch_size
        return observe(
            model,
            pixels,
            values=values,
            mean_axes=mean_axes,
            batch_size=batch_size,
            device=device,
            advance=Steps(progress, -(-len(pixels) // batch_size)),
        )

    def observe_runs(
        self, model: ir.Model, runs: Sequence[Mapping[str, Tensor]], targets: Sequence[Target], *, device: str = "cpu"
    ) -> Observations:
        """Statistics of the values of a graph whose runs have no images in common: see `observation.observe_runs`."""
        values, mean_axes = self._wanted(model, targets)
        return observe_runs(model, runs, values=values, mean_axes=mean_axes, device=device)

    def _wanted(self, model: ir.Model, targets: Sequence[Target]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Values to take histograms of, and those to take means of with their channel axes."""
        points = [find_quant_points(model, target) for target in targets]
        values = dict.fromkeys(name for of_target in points for name in of_target.activations)
        layers = [node for of_target in points for node in layers_with_bias(model, of_target)]
        means = {node.inputs[0].name or "": 1 for node in layers if node.inputs[0] is not None}
        return tuple(values) if self.activation_bits < FLOAT_BITS else (), means

    def decide(
        self,
        model: ir.Model,
        observations: Observations,
        target: Target,
        *,
        overrides: Mapping[str, TensorQuant] = MappingProxyType({}),
    ) -> QuantPlan:
        """The plan for one target. No image is looked at again, and nothing is edited.

        1. Weights, activations and constants get their grids.
        2. Activations are shifted to grids without sign, where that is asked for and pays.
        3. Weights get coarser, where the target's kernels would saturate on them.
        4. Biases follow; for their sake weights may get coarser once more.

        Args:
            model: The graph that was observed.
            observations: Of the values that the target quantizes.
            target: What the plan is for.
            overrides: Grids that are taken instead: by initializer name, of weights, and by value name, of activations.
                A weight's grid that leaves no room for its bias is made coarser none the less.

        Raises:
            InputError: The target refuses the bits, the scheme or the shift to grids without sign; `layer_bits` names
                what is no layer, or gives one activation two widths.
        """
        self.check(target)
        points = find_quant_points(model, target)
        activations = self._activations(model, observations, points, target, overrides)
        only_signed = target.unsigned_activations == "none"
        plan = QuantPlan(
            activations=activations,
            weights={
                use.initializer: self._pinned_weight(use)
                or overrides.get(use.initializer)
                or self._weight(model, use, target)
                for use in points.weights
            },
            constants={
                name: constant_quant(
                    initializer_array(model.graph, name), self.activation_bits, self.scheme, only_signed=only_signed
                )
                for name in points.constants
                if activations and not self.only_activated
            },
            same_as={name: root for name, root in points.same_as.items() if root in activations},
        )
        if self.shift_negative:
            plan = with_shifts(plan, find_shifts(model, observations.histograms, plan.activations, self.scheme))
        before, plan = plan, within_pair_sums(model, plan, target)
        log_coarser(before, plan, "so that pairs of products fit 16 bits")
        layers = layers_with_bias(model, points)
        correction = BiasCorrection(means=observations.means, enabled=self.correct_bias)
        if target.bias == "int8":
            return with_short_biases(plan, model, layers, correction, target, scheme=self.scheme)
        return with_biases(plan, model, layers, correction, target)

    def check(self, target: Target) -> None:
        """Raises InputError when the target refuses the bits, the scheme or the shift to grids without sign."""
        pins = self.layer_bits.values()
        for what, widths, allowed in (
            ("weights", (self.weight_bits, *(pin.weight for pin in pins)), target.weight_bits),
            ("activations", (self.activation_bits, *(pin.activation for pin in pins)), target.activation_bits),
        ):
            for bits in widths:
                if bits is not None and bits not in allowed:
                    raise InputError(
                        f"The target {target.name} ({target.title}) takes {what} of {_listed(allowed)} bits, not of "
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

    def check_tensors(self, model: ir.Model, target: Target) -> None:
        """Raises InputError where a pinned grid is none that the target takes, or contradicts `layer_bits`."""
        points = find_quant_points(model, target)
        widths = self.activation_widths(model, points)
        asked = {name for name, width in widths.items() if width != self.activation_bits}
        for name in points.activations:
            if (pin := self.tensors.get(name)) is None:
                continue
            if pin.bits is not None and name in asked and pin.bits != widths[name]:
                raise InputError(
                    f"The plan gives {name!r} {pin.bits} bits among its tensors and {widths[name]} among its layers; "
                    "take one of the two out."
                )
            check_pinned_activation(name, pin, widths[name], target)
        uses = {use.initializer: use for use in points.weights}
        for name in self.tensors.keys() & uses.keys():
            check_pinned_weight(uses[name], self.tensors[name], model, target)

    def takes_zero_points(self, target: Target) -> bool:
        """Whether grids without sign may begin below zero."""
        return target.zero_points == "any" and not self.shift_negative

    def shiftable(self, model: ir.Model, observations: Observations, plan: QuantPlan) -> int:
        """How many activations of the plan `shift_negative` would move to a grid without sign."""
        return len(find_shifts(model, observations.histograms, plan.activations, self.scheme))

    def activation_widths(self, model: ir.Model, points: QuantPoints) -> dict[str, int]:
        """By value name, the bits that `layer_bits` asks for what layers read; at least 8 of what enters the network,
        or leaves it with no layer reading it.

        Raises:
            InputError: `layer_bits` names what is no layer, or gives one activation two widths.
        """
        check_layers(self.layer_bits, points)
        nodes = {node.name: node for node in model.graph}
        widths = dict.fromkeys(points.activations, self.activation_bits)
        first_reader: dict[str, str] = {}
        read = set()
        for use in points.weights:
            source = data_input(nodes[use.node], use)
            root = points.same_as.get(source, source)
            read.add(root)
            pin = self.layer_bits.get(use.node)
            if pin is None or pin.activation is None or self.activation_bits == FLOAT_BITS:
                continue
            if root in first_reader and widths[root] != pin.activation:
                raise InputError(
                    f"The layers {first_reader[root]!r} and {use.node!r} read the same values, so they share the width "
                    f"of the activation; {widths[root]} and {pin.activation} bits are asked for."
                )
            first_reader[root] = use.node
            widths[root] = pin.activation
        enters, leaves = ({name_of(value) for value in part} for part in (model.graph.inputs, model.graph.outputs))
        left = {points.same_as.get(name, name) for name in leaves} - read
        for name in (enters | left) & widths.keys():
            widths[name] = max(widths[name], BOUNDARY_BITS)
        return widths

    def default_bits(self, *, scales: bool) -> int:
        """Of a weight that nothing pins; one that holds a number per channel is a constant more than a weight."""
        return max(self.weight_bits, CONSTANT_BITS) if scales else self.weight_bits

    def _activations(
        self,
        model: ir.Model,
        observations: Observations,
        points: QuantPoints,
        target: Target,
        overrides: Mapping[str, TensorQuant],
    ) -> dict[str, TensorQuant]:
        widths = self.activation_widths(model, points)
        producers = {value.name: node for node in model.graph for value in node.outputs}
        grids = ActivationGrids(
            target=target,
            fusion=Fusion(target),
            scheme=self.scheme,
            clipping=self.clipping,
            zero_points=self.takes_zero_points(target),
        )
        activations = {}
        for name in points.activations:
            if name not in observations.histograms or (self.only_activated and not _is_activated(producers.get(name))):
                continue
            histogram = observations.histograms[name]
            pin, producer = self.tensors.get(name), producers.get(name)
            if pin is not None:
                quant = grids.pinned(pin, producer, widths[name])
            else:
                quant = overrides.get(name) or grids.quant(histogram, producer, widths[name])
            logger.debug(
                "%s: values from %.4g to %.4g, %s, %d bits, threshold %.4g, zero point %d, Clip on the integers %s",
                name,
                histogram.least,
                histogram.greatest,
                "with sign" if quant.signed else "without sign",
                quant.bits,
                quant.threshold,
                quant.zero_point,
                quant.clip,
            )
            activations[name] = quant
        return activations

    def _pinned_weight(self, use: WeightUse) -> TensorQuant | None:
        if (pin := self.tensors.get(use.initializer)) is None:
            return None
        layer = self.layer_bits.get(use.node)
        bits = None if layer is None else layer.weight
        return pin.quant(self.default_bits(scales=use.scales) if bits is None else bits, use.axis)

    def _weight(self, model: ir.Model, use: WeightUse, target: Target) -> TensorQuant:
        pin = self.layer_bits.get(use.node)
        return weight_quant(
            initializer_array(model.graph, use.initializer),
            self.default_bits(scales=use.scales) if pin is None or pin.weight is None else pin.weight,
            self.scheme,
            # of one number every scale is as good that happens to hit it; the least leaves the bias the finest grid
            "max" if use.scales else self.clipping,
            axis=use.axis if target.per_channel_weights else None,
            narrow=target.narrow_weights,
        )


def _is_activated(node: ir.Node | None) -> bool:
    return node is not None and is_op(node, "Relu", "Clip")


def _listed(numbers: Sequence[int]) -> str:
    """[4, 8, 16] → "4, 8 or 16"."""
    return " or ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))
