"""DF-MPC (arXiv 2307.00498): low-bit weights, and the batch normalizations behind them recalibrated in closed form."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32, Float64

from passes.dfmpc.correlation import Field, fields
from passes.dfmpc.layer_pairs import Assignment, Layer, LayerPairs, NormSlice, find_layer_pairs, input_count
from passes.dfmpc.low_bit import (
    LowBit,
    Single,
    dorefa,
    rows_as_weight,
    ternary_of_layer,
    uniform,
    weight_rows,
)
from passes.dfmpc.noise_probe import Covariance
from passes.dfmpc.plan import CompensationPlan, LowBitWeight, NormNumbers
from passes.dfmpc.recalibration import (
    CorrelatedChannels,
    IndependentChannels,
    InputStatistics,
    NormalizedLayer,
    coefficients,
    deviation_ratio,
    input_statistics,
)
from passes.graph.affine import Array
from passes.graph.channel_paths import layer_bias
from passes.graph.editing import as_float64, constant_value, is_op, name_of
from passes.moments.moments import Moments
from passes.moments.spread import Spread

Rounding = Literal["paper", "nearest", "covariance"]
Deviation = Literal["keep", "norm", "covariance"]
logger = logging.getLogger(__name__)

WHY = "the debug log (-v) says why of each"
PARALLEL_LAYERS = 2  # rounded at a time: more would take more memory


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """The settings of DF-MPC (arXiv 2307.00498); the defaults measured best.

    low_bits, high_bits: widths of the weights of the two kinds of layers, 2…8; 2 bits are ternary.
    assignment: which layers are low; see `find_layer_pairs`.
    rounding: "paper": one scale for a layer, Eq. (3), (4), (6). "nearest": one scale per output channel. "covariance":
        likewise, and in low layers the integers that minimise the variance of the output's error.
    mean: whether the BatchNormalization behind a layer gets a new running mean.
    deviation: whether it gets a new variance: "keep", by the "norm" of filters, or by the "covariance" of inputs.
    high_layers: whether these hold behind high layers too.
    coefficients: whether pairs that allow it get the coefficients of Eq. (27), with weights lambda1 and lambda2. They
        lower the error of the next layer and shrink its input; with new deviations networks are better without.
    """

    low_bits: int
    high_bits: int
    assignment: Assignment = "first"
    rounding: Rounding = "covariance"
    mean: bool = True
    deviation: Deviation = "covariance"
    high_layers: bool = True
    coefficients: bool = False
    lambda1: float = 0.5
    lambda2: float = 0.0

    def __post_init__(self) -> None:
        for name, bits in (("low", self.low_bits), ("high", self.high_bits)):
            most = 7 if self.rounding == "paper" else 8
            if not 2 <= bits <= most:
                raise ValueError(f"The {name} layers have {bits} bits; {self.rounding} rounding takes 2 to {most}.")

    @classmethod
    def paper(cls, *, low_bits: int, high_bits: int) -> "Compensation":
        """The method as published; for the recalibration of low layers, of which it gives no formula, "norm"."""
        return cls(
            low_bits=low_bits,
            high_bits=high_bits,
            assignment="first",
            rounding="paper",
            deviation="norm",
            high_layers=False,
            coefficients=True,
        )


def plan_compensation(
    model: ir.Model,
    settings: Compensation,
    *,
    moments: Mapping[str, Moments | Spread] | None = None,
    covariances: Mapping[str, Covariance] | None = None,
) -> CompensationPlan:
    """All numbers of DF-MPC for a model, which stays as it is.

    Args:
        model: float, in canonical form, with its BatchNormalizations.
        settings: of the method.
        moments: by value name, of the image; for a model whose BatchNormalizations are folded, of the inputs of its
            layers, measured on images.
        covariances: by layer name, of the inputs of layers, measured on images or noise (see `noise_probe`). They take
            precedence over moments.

    Raises:
        ValueError: no layer can have low bits, or take a coefficient where these are asked for (the log says why of
            each); or a folded model comes without `moments`.
    """
    pairs = find_layer_pairs(model, settings.assignment)
    refusals = _refusals(pairs, settings)
    _check(model, settings, pairs, moments)
    position = {node: index for index, node in enumerate(model.graph)}
    layers = sorted((*pairs.low, *pairs.high), key=lambda layer: position[layer.node])
    sources = [name_of(layer.node.inputs[0]) for layer in layers]
    images = {name_of(value) for value in model.graph.inputs} - set(moments or {})
    field_of = _fields_of(set(sources) - images, fields(model, moments))
    low, legal = {layer.node for layer in pairs.low}, {layer.node for layer in pairs.legal}
    inputs = [
        _inputs(layer.node, (covariances or {}).get(name_of(layer.node)), field_of.get(source))
        for layer, source in zip(layers, sources, strict=True)
    ]
    with ThreadPoolExecutor(max_workers=PARALLEL_LAYERS) as pool:
        weights = pool.map(
            lambda layer, statistics: _quantized(layer.node, settings, layer.node in low, statistics), layers, inputs
        )
        planner = _Planner(settings)
        for layer, source, statistics, weight in zip(layers, sources, inputs, weights, strict=True):
            field = field_of.get(source)
            approximate = (
                isinstance(statistics, IndependentChannels) and field is not None and field.moments.approximate
            )
            compensated = settings.coefficients and layer.node in legal
            planner.add(
                layer, weight, statistics, low=layer.node in low, compensated=compensated, approximate=approximate
            )
    return planner.result(refusals)


def _fields_of(names: set[str], fields: Iterator[tuple[str, Field]]) -> dict[str, Field]:
    """The fields of these values. Stops at the last of them, as the rest of the network need not be computed."""
    found: dict[str, Field] = {}
    for name, field in fields:
        if name in names:
            found[name] = field
            if len(found) == len(names):
                break
    return found


def _check(
    model: ir.Model, settings: Compensation, pairs: LayerPairs, moments: Mapping[str, Moments | Spread] | None
) -> None:
    if not (pairs.low or pairs.high):
        raise ValueError("The model has no layer with a constant weight of floats: there is nothing to quantize.")
    if not any(is_op(node, "BatchNormalization") for node in model.graph) and not moments:
        raise ValueError(
            "The model has no BatchNormalization that DF-MPC could recalibrate. If they were folded into the weights, "
            "export the model without folding, or give images, from which the means can be corrected."
        )
    if not pairs.low and settings.low_bits != settings.high_bits:
        raise ValueError(
            f"No layer can have {settings.low_bits} bits beside others of {settings.high_bits} that pay for it: "
            f"each of the {len(pairs.high)} stays high ({WHY}). Give all layers the same bits."
        )
    if settings.coefficients and pairs.low and not pairs.legal:
        raise ValueError(
            f"No pair is legal: of no low layer ({len(pairs.low)} in all) all readers can be compensated; {WHY}."
        )


def _refusals(pairs: LayerPairs, settings: Compensation) -> str | None:
    """A sentence on the layers that stay high, and on the low ones that nothing compensates; None where there is none.

    The reason of each goes to the log: networks have hundreds of layers, and most reasons are the same.
    """
    for reason in pairs.refused.values():
        logger.debug("%s", reason.rstrip("."))
    count = len(pairs.low) + len(pairs.high)
    told = []
    if pairs.high and settings.low_bits != settings.high_bits:
        told.append(f"{len(pairs.high)} of {count} layers stay at {settings.high_bits} bits")
    if settings.coefficients and (bare := len(pairs.low) - len(pairs.legal)):
        told.append(f"of the {len(pairs.low)} low ones {bare} get no coefficient")
    return f"{', and '.join(told)}; {WHY}." if told else None


class _Planner:
    """Collects the numbers of a CompensationPlan, layer by layer in graph order."""

    def __init__(self, settings: Compensation) -> None:
        self.settings = settings
        self.weights: dict[str, LowBitWeight] = {}
        self.norms: dict[ir.Node, NormNumbers] = {}
        self.biases: dict[str, Array] = {}
        self.coefficients: dict[str, tuple[Array, ...]] = {}
        self.without_statistics: list[str] = []
        self.approximate: list[str] = []
        self._gains: dict[ir.Node, Array] = {}  # the product of the coefficients on each input of a layer

    def add(
        self,
        layer: Layer,
        found: LowBit,
        inputs: InputStatistics | None,
        *,
        low: bool,
        compensated: bool,
        approximate: bool,
    ) -> None:
        """Take in a layer with its quantized weight `found`, and recalibrate what follows it."""
        node, settings, name = layer.node, self.settings, name_of(layer.node)
        if inputs is None:
            self.without_statistics.append(name)
        elif approximate:
            self.approximate.append(name)
        shape, rows = _rows(node)
        shift, ratio = np.zeros(len(rows)), np.ones(len(rows))
        if low or settings.high_layers:
            new = self._with_gain(node, found.rows)
            if settings.deviation != "keep":
                ratio = deviation_ratio(rows, new, inputs if settings.deviation == "covariance" else None)
            if not layer.norms:  # no other place than the weight itself
                found = LowBit(integers=found.integers, scale=found.scale / ratio)
                new = np.asarray(new / ratio[:, None], np.float32)
            if settings.mean and inputs is not None:
                shift = inputs.output_mean(new - rows)
        bits = settings.low_bits if low else settings.high_bits
        wider = settings.rounding == "paper" and bits > 2  # DoReFa's integers are odd, and twice as far apart
        integers = rows_as_weight(node, found.integers, shape)
        self.weights[name] = LowBitWeight(bits=bits + wider, integers=integers, scale=found.scale)
        for norm in layer.norms:
            self._recalibrate(layer, norm, rows, found, shift, ratio, compensated)
        if not layer.norms and shift.any() and (bias := layer_bias(node)) is not None:
            self.biases[name] = bias - shift

    def _with_gain(self, node: ir.Node, rows: Float32[Single, "o d"]) -> Float32[Single, "o d"]:
        """(O, D) the rows times the coefficients on their inputs."""
        gain = self._gains.get(node)
        if gain is None:
            return rows
        group = node.attributes.get_int("group", 1)
        split = rows.reshape(group, len(rows) // group, len(gain) // group, -1)
        return np.asarray((split * gain.reshape(group, 1, -1, 1)).reshape(rows.shape), np.float32)

    def _recalibrate(
        self,
        layer: Layer,
        norm: NormSlice,
        rows: Float32[Single, "o d"],
        found: LowBit,
        shift: Float64[Array, "o"],
        ratio: Float64[Array, "o"],
        compensated: bool,
    ) -> None:
        epsilon = norm.node.attributes.get_float("epsilon", 1e-5)
        whole = self.norms.get(norm.node) or _numbers(norm.node)
        part = slice(norm.start, norm.start + len(rows))
        scale, bias, mean = whole.scale[part], whole.bias[part], whole.mean[part] + shift
        before = np.sqrt(whole.var[part] + epsilon)
        after, c = before * ratio, np.ones(len(rows))
        if compensated:
            old = NormalizedLayer(rows=rows, scale=scale, bias=bias, mean=whole.mean[part], deviation=before)
            new = NormalizedLayer(rows=found.rows, scale=scale, bias=bias, mean=mean, deviation=after)
            c = coefficients(old, new, lambda1=self.settings.lambda1, lambda2=self.settings.lambda2)
            name = name_of(layer.node)
            self.coefficients[name] = (*self.coefficients.get(name, ()), c)
            for consumer in norm.consumers:
                gain = self._gains.setdefault(consumer.node, np.ones(input_count(consumer.node)))
                gain[consumer.start : consumer.start + len(c) * consumer.run] *= np.repeat(c, consumer.run)
        # variance and epsilon give the new deviation; below sqrt(epsilon) they cannot, and the scale takes the rest
        var = np.maximum(np.square(after) - epsilon, 0.0)
        made = (c * scale * np.sqrt(var + epsilon) / after, c * bias, mean, var)
        arrays = [array.copy() for array in (whole.scale, whole.bias, whole.mean, whole.var)]
        for array, numbers in zip(arrays, made, strict=True):
            array[part] = numbers
        self.norms[norm.node] = NormNumbers(scale=arrays[0], bias=arrays[1], mean=arrays[2], var=arrays[3])

    def result(self, refusals: str | None) -> CompensationPlan:
        """The plan, with notes for the user, `refusals` (`_refusals`) among them."""
        settings, notes = self.settings, [refusals] if refusals else []
        if settings.low_bits > settings.high_bits:
            notes.append(
                f"The layers that are to pay have {settings.high_bits} bits, fewer than the {settings.low_bits} of "
                "those they pay for; the other way round the same size usually keeps more accuracy."
            )
        if self.without_statistics:
            notes.append(f"Without data nothing is known of what {_listed(self.without_statistics)} reads.")
        if self.approximate:
            notes.append(f"Mean and deviation are approximate of what {_listed(self.approximate)} reads.")
        return CompensationPlan(
            weights=self.weights,
            norms={name_of(node): numbers for node, numbers in self.norms.items()},
            biases=self.biases,
            coefficients=self.coefficients,
            notes=tuple(notes),
        )


def _quantized(node: ir.Node, settings: Compensation, low: bool, inputs: InputStatistics | None) -> LowBit:
    _, rows = _rows(node)
    bits = settings.low_bits if low else settings.high_bits
    if settings.rounding == "paper":
        return ternary_of_layer(rows) if bits == 2 else dorefa(rows, bits)
    found = uniform(rows, bits)
    if settings.rounding == "nearest" or inputs is None or not low:
        return found
    return inputs.rounded(rows, found, bits)


def _rows(node: ir.Node) -> tuple[tuple[int, ...], Float32[Single, "o d"]]:
    """The shape of a layer's weight, and its rows (O, D)."""
    weight = constant_value(node.inputs[1])
    assert weight is not None
    return weight.shape, weight_rows(node, weight).astype(np.float32, copy=False)


def _inputs(node: ir.Node, covariance: Covariance | None, field: Field | None) -> InputStatistics | None:
    if covariance is not None:
        return CorrelatedChannels(covariance=covariance)
    return None if field is None else input_statistics(node, _rows(node)[0], field)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"each of {len(names)} layers (the first is {names[0]})"


def _numbers(node: ir.Node) -> NormNumbers:
    arrays = [constant_value(value) for value in node.inputs[1:5]]
    scale, bias, mean, var = (as_float64(array) for array in arrays if array is not None)
    return NormNumbers(scale=scale, bias=bias, mean=mean, var=var)
