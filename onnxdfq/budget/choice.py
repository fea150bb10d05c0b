"""The widths of all layers under a budget: sensitivities are measured, then the best choice is searched."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import onnx_ir as ir

from onnxdfq.budget.costs import Layer, bit_operations, read_layers, size_bits
from onnxdfq.budget.search import least_loss, pareto
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.calibration.sensitivity import Sensitivity, measure_sensitivity
from onnxdfq.errors import InputError
from onnxdfq.images.samples import SamplesLike
from onnxdfq.model_file import batch_of
from onnxdfq.progress import Progress, Steps
from onnxdfq.recipe.bits import FLOAT_BITS, LayerBits
from onnxdfq.recipe.budget import Budget
from onnxdfq.work.checkpoint import Checkpoint, Findings
from passes.quantize.points import find_quant_points
from passes.target.target import Target

logger = logging.getLogger(__name__)

IMAGES = 64  # on ResNet-20 the choice stays the same from 16 on


@dataclass(frozen=True, kw_only=True)
class MixedBits:
    """The widths of every layer under a budget.

    layers: by node name, in graph order. size: bytes of weights and scales. bops: bit operations per image. loss: noise
    over signal at the outputs, summed over all that was free to choose.
    """

    layers: Mapping[str, LayerBits]
    size: float
    bops: int
    loss: float

    @property
    def weight_bits(self) -> dict[str, int]:
        """By node name."""
        return {name: bits.weight for name, bits in self.layers.items() if bits.weight is not None}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Layers that read one value, and the widths that each and the value may take."""

    source: str | None
    layers: tuple[Layer, ...]
    weight_bits: tuple[tuple[int, ...], ...]
    activation_bits: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Option:
    """Widths for a group. cost: in the budget's unit. loss: summed sensitivities. weights: of its layers, in order."""

    cost: float
    loss: float
    activation: int
    weights: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BitChoices:
    """What widths each layer may take and what they lose, measured once, for as many budgets as are tried."""

    layers: tuple[Layer, ...]
    groups: list[_Group]
    options: list[list[_Option]]

    @property
    def least(self) -> float:
        """The least cost, in the unit of the budget that they were measured for."""
        return sum(min(option.cost for option in options) for options in self.options)

    @property
    def most(self) -> float:
        """The cost of the widest."""
        return sum(max(option.cost for option in options) for options in self.options)

    def within(self, limit: float) -> MixedBits:
        """The widths with the least summed loss whose cost is within `limit`, which is `least` or more."""
        places = least_loss([[(option.cost, option.loss) for option in options] for options in self.options], limit)
        assert places is not None
        picked = [options[index] for options, index in zip(self.options, places, strict=True)]
        weights = {
            layer.node: bits
            for group, option in zip(self.groups, picked, strict=True)
            for layer, bits in zip(group.layers, option.weights, strict=True)
        }
        activations = {group.source: option.activation for group, option in zip(self.groups, picked, strict=True)}
        stated = {source: None if bits == FLOAT_BITS else bits for source, bits in activations.items()}
        for layer in self.layers:
            logger.debug("%s: weight of %d bits, input of %s", layer.node, weights[layer.node], stated[layer.source])
        return MixedBits(
            layers={
                layer.node: LayerBits(weight=weights[layer.node], activation=stated[layer.source])
                for layer in self.layers
            },
            size=size_bits(self.layers, weights) / 8,
            bops=bit_operations(self.layers, weights, activations),
            loss=sum(option.loss for option in picked),
        )


def bit_choices(
    model: ir.Model,
    pixels: SamplesLike,
    observations: Observations,
    calibration: Calibration,
    target: Target,
    budget: Budget,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> BitChoices:
    """What there is to choose among, measured; `BitChoices.within` takes the best of all choices, not a good one.

    Weights take any width of the target up to `calibration.weight_bits`, and those of one number per channel keep 8;
    the activations that layers read take any up to `calibration.activation_bits` where the budget counts operations,
    else that. What `calibration.layer_bits` pins is not touched.

    Args:
        model: Float, BatchNormalization folded, as it was observed.
        pixels: In the model's input units, of which the first 64 are used.
        observations: By `calibration`, of that model.
        calibration: How the plans are decided that sensitivities are measured with.
        target: What the plans are for.
        budget: Bytes, or bit operations per image.
        device: Where the network runs.
        progress: Called after each measurement.
        checkpoint: Where what was measured is kept.

    Raises:
        InputError: The budget is below the least that is possible; or as `Calibration.decide` does for pins.
    """
    layers, groups = _read(model, calibration, target, budget)
    batch_size = batch_of(model) or calibration.batch_size
    pixels = pixels[: max(IMAGES, batch_size)]
    kept = Findings(checkpoint)(
        "sensitivity",
        lambda: _measure(
            model, pixels, observations, calibration, target, groups, batch_size, device, progress
        ).to_lists(),
        last=True,
    )
    sensitivity = Sensitivity.of_lists(kept)
    return BitChoices(layers=layers, groups=groups, options=[_options(group, sensitivity, budget) for group in groups])


def check_budget(model: ir.Model, calibration: Calibration, target: Target, budget: Budget) -> None:
    """Raises InputError as `bit_choices` does, before there is any image and before BatchNormalization is folded."""
    _read(model, calibration, target, budget)


def _read(
    model: ir.Model, calibration: Calibration, target: Target, budget: Budget
) -> tuple[tuple[Layer, ...], list[_Group]]:
    calibration.check(target)
    widths = calibration.activation_widths(model, find_quant_points(model, target))
    layers = read_layers(model, target)
    images = {value.name for value in model.graph.inputs}
    groups = _groups(layers, calibration, target, budget, images=images, widths=widths)
    least = sum(
        _cost(budget, group, min(group.activation_bits), [min(bits) for bits in group.weight_bits]) for group in groups
    )
    if least > budget.limit:
        raise InputError(
            f"--budget {budget} cannot be met: the least possible for this model and the target {target.name} is "
            f"{budget.rounded_up(least)}{', with what the plan pins' if calibration.layer_bits else ''}."
        )
    return layers, groups


def _cost(budget: Budget, group: _Group, activation: int, weights: Iterable[int]) -> float:
    bits = {layer.node: width for layer, width in zip(group.layers, weights, strict=True)}
    if budget.kind == "size":
        return size_bits(group.layers, bits) / 8
    return bit_operations(group.layers, bits, {group.source: activation})


def _groups(
    layers: Iterable[Layer],
    calibration: Calibration,
    target: Target,
    budget: Budget,
    *,
    images: set[str | None],
    widths: Mapping[str, int],
) -> list[_Group]:
    """Layers by what they read; where only one width of that is allowed, each layer is a group of its own."""
    by_source: dict[str | None, list[Layer]] = {}
    for layer in layers:
        by_source.setdefault(layer.source, []).append(layer)
    groups = []
    for source, members in by_source.items():
        pins = [calibration.layer_bits.get(layer.node, LayerBits()) for layer in members]
        fixed = [
            calibration.default_bits(scales=True) if pin.weight is None and layer.only_scales else pin.weight
            for layer, pin in zip(members, pins, strict=True)
        ]
        weights = tuple(_allowed(bits, calibration.weight_bits, target.weight_bits) for bits in fixed)
        most = calibration.activation_bits
        activations: tuple[int, ...]
        if source is None or most == FLOAT_BITS:
            activations = (FLOAT_BITS,)
        elif source in images or budget.kind == "size" or any(pin.activation is not None for pin in pins):
            activations = (widths[source],)
        else:
            activations = _allowed(None, most, target.activation_bits)
        if len(activations) > 1:
            groups.append(
                _Group(source=source, layers=tuple(members), weight_bits=weights, activation_bits=activations)
            )
        else:
            groups.extend(
                _Group(source=source, layers=(layer,), weight_bits=(bits,), activation_bits=activations)
                for layer, bits in zip(members, weights, strict=True)
            )
    return groups


def _allowed(pin: int | None, most: int, of_target: Iterable[int]) -> tuple[int, ...]:
    return (pin,) if pin is not None else tuple(bits for bits in sorted(of_target) if bits <= most)


def _measure(
    model: ir.Model,
    pixels: SamplesLike,
    observations: Observations,
    calibration: Calibration,
    target: Target,
    groups: Iterable[_Group],
    batch_size: int,
    device: str,
    progress: Progress | None,
) -> Sensitivity:
    """Of every layer and activation with more than one width."""
    plain = replace(calibration, layer_bits={})
    weights = {
        layer.node: widths
        for group in groups
        for layer, widths in zip(group.layers, group.weight_bits, strict=True)
        if len(widths) > 1
    }
    activations = {
        group.source: group.activation_bits
        for group in groups
        if group.source is not None and len(group.activation_bits) > 1
    }
    by_weight = {
        bits: replace(plain, weight_bits=bits).decide(model, observations, target)
        for bits in sorted(set().union(*weights.values()))
    }
    by_activation = {
        bits: replace(plain, activation_bits=bits).decide(model, observations, target)
        for bits in sorted(set().union(*activations.values()))
    }
    return measure_sensitivity(
        model,
        pixels,
        weights={name: {bits: by_weight[bits] for bits in widths} for name, widths in weights.items()},
        activations={name: {bits: by_activation[bits] for bits in widths} for name, widths in activations.items()},
        batch_size=batch_size,
        device=device,
        advance=Steps(progress, sum(map(len, weights.values())) + sum(map(len, activations.values()))),
    )


def _options(group: _Group, sensitivity: Sensitivity, budget: Budget) -> list[_Option]:
    """The Pareto-optimal widths of the group."""
    options = []
    for activation in group.activation_bits:
        of_source = sensitivity.activations.get(group.source or "", {}).get(activation, 0.0)
        partial = [_Option(cost=0.0, loss=of_source, activation=activation)]
        for layer, widths in zip(group.layers, group.weight_bits, strict=True):
            losses = sensitivity.weights.get(layer.node, {})
            alone = replace(group, layers=(layer,))
            longer = [
                replace(
                    option,
                    cost=option.cost + _cost(budget, alone, activation, (bits,)),
                    loss=option.loss + losses.get(bits, 0.0),
                    weights=(*option.weights, bits),
                )
                for option, bits in product(partial, widths)
            ]
            partial = _pareto(longer)
        options.extend(partial)
    return _pareto(options)


def _pareto(options: list[_Option]) -> list[_Option]:
    return [options[index] for index in pareto([(option.cost, option.loss) for option in options])]
