"""The QDQ graph while it is tuned: where its quantizers stand, and how results get into it and into a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32, Int8
from numpy.typing import NDArray

from onnxdfq.calibration.bias_correction import on_accumulator_grid
from onnxdfq.tuning.rounding import WeightRounding
from passes.graph.editing import name_of, required_name
from passes.quantize.pair_sums import bound_of_weight, pairs_beyond
from passes.quantize.plan import QuantPlan
from passes.quantize.points import scales_channels, weight_uses
from passes.target.target import Target
from passes.write.biases import accumulator_scale
from passes.write.insert_qdq import InsertQdq
from passes.write.shift_negative import ShiftNegative


@dataclass(frozen=True, kw_only=True)
class QuantizerSite:
    """A QuantizeLinear and the DequantizeLinear that follows.

    source: the float value that is quantized. output: the value that consumers read. key: its name in the plan, or that
    of the value whose parameters it shares. scale: the initializer that holds the scale.
    """

    source: str
    output: str
    key: str
    scale: str


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasGrid:
    """The grid of a layer's accumulator.

    source: key of the quantizer of its input. weight: name of its weight. steps: (C_out,) between neighbours, which go
    with the scales of both.
    """

    source: str
    weight: str
    steps: Float32[NDArray[np.float32], "o"]


class QdqGraph:
    """A model with a plan carried out, in the plainest form: int8 weights, float biases.

    Targets differ in containers, not in numbers, so what is tuned here holds for all that share the plan.

    Args:
        model: The float graph that the plan is for; it is only read.
        plan: What is carried out.
        target: Tells which activations are quantized, and on which weights its kernels saturate.
        reference: The network of the same nodes whose weights are rounded; by default `model` itself.

    model: the QDQ graph. sites: its activation quantizers, by the value that consumers read.
    """

    def __init__(self, model: ir.Model, plan: QuantPlan, target: Target, *, reference: ir.Model | None = None) -> None:
        self._plan, self._target = plan, target
        self._layer_of = {use.initializer: use.node for node in model.graph for use in weight_uses(node)}
        own = (reference or model).graph
        self._weights = {use.node: own.initializers[use.initializer] for node in own for use in weight_uses(node)}
        self._layers = {name_of(node): node for node in model.graph}
        self.model = model.clone()
        ShiftNegative(plan.shifts)(self.model)
        plain = replace(target, bias="float", weight_containers={8: "int8"}, static_shapes=False, format="qdq")
        InsertQdq(replace(plan, bias_quants={}), plain)(self.model)
        self._nodes = {name_of(node): node for node in self.model.graph}
        self.sites = {site.output: site for node in self.model.graph if (site := self._site(node)) is not None}
        self._output_of = {site.source: site.output for site in self.sites.values()}

    def _site(self, node: ir.Node) -> QuantizerSite | None:
        if node.op_type != "QuantizeLinear":
            return None
        last = node
        while last.op_type != "DequantizeLinear":
            last = last.outputs[0].consumers()[0]
        source, output = required_name(node.inputs[0]), required_name(last.outputs[0])
        name = output if last.outputs[0].is_graph_output() else source
        return QuantizerSite(
            source=source, output=output, key=self._plan.same_as.get(name, name), scale=required_name(node.inputs[1])
        )

    def float_name(self, value: str) -> str:
        """The value of the float graph as computed here, before it is quantized."""
        site = self.sites.get(value)  # a graph output: its name went to the quantized value
        return value if site is None else site.source

    def read_name(self, value: str) -> str:
        """What the consumers of a value of the float graph read: the quantized one where it is quantized."""
        return value if value in self.sites else self._output_of.get(value, value)

    def bias_names(self, nodes: tuple[str, ...]) -> dict[str, str]:
        """Layer → the initializer that it adds, for those whose bias the plan sets and may set anew.

        Not those that scale single channels: there each of the few values that come in gives one value, training stops
        where that just rounds to the other side, and the accumulator's grid takes it back.
        """
        if self._plan.bias_quants:  # on grids of their own, which belong to these very biases
            return {}
        return {
            node: required_name(self._nodes[node].inputs[2])
            for node in nodes
            if node in self._plan.biases and not scales_channels(self._layers[node])
        }

    def bias_grid(self, layer: str) -> BiasGrid | None:
        """Of what the bias of a layer of `bias_names` will be a multiple; None where it stays as it is."""
        node, size = self._layers[layer], self._plan.biases[layer].size
        source, weight = required_name(node.inputs[0]), required_name(node.inputs[1])
        read = self._plan.read_quant(source)
        steps = None if read is None else accumulator_scale(node, read.scale, self._plan.weights[weight].scale, size)
        if steps is None:
            return None
        site = self.sites[required_name(self._nodes[layer].inputs[0])]
        return BiasGrid(source=site.key, weight=weight, steps=steps.astype(np.float32))

    def rounding(
        self,
        weight: str,
        start: Float32[NDArray[np.float32], "..."] | None = None,
        *,
        learn_scale: bool = False,
    ) -> WeightRounding:
        """The rounding of the weight of this name, begun at the plan's integers or else at the float weight.

        Args:
            weight: The initializer's name.
            start: In the weight's shape and unit, where it begins instead.
            learn_scale: Whether its scale may take any value and trains.
        """
        value = self._weights[self._layer_of[weight]].const_value
        assert value is not None
        node = self._layers[self._layer_of[weight]]
        bound = bound_of_weight(node, weight, self._plan, self._target)
        return WeightRounding(
            value.numpy() if start is None else start,
            self._plan.weights[weight],
            self._plan.integers.get(weight) if start is None else None,
            learn_scale=learn_scale and not self._plan.bias_quants,  # all scales of such a plan hang together
            saturating=None
            if bound is None
            else partial(pairs_beyond, node, bound=bound, order=self._target.pair_order),
        )

    def write_weight_scales(self, scales: Mapping[str, Float32[NDArray[np.float32], "..."]]) -> None:
        """Put other scales of weights into the graph and into the plan, whose integers stay.

        scales: by weight, () or (C,), in its unit.
        """
        initializers = self.model.graph.initializers
        readers = {
            required_name(node.outputs[0]): node for node in self.model.graph if node.op_type == "DequantizeLinear"
        }
        weights = dict(self._plan.weights)
        for name, scale in scales.items():
            place = required_name(readers[name].inputs[1])
            initializers[place].const_value = ir.Tensor(scale.astype(np.float32), name=place)
            quant = weights[name]
            weights[name] = replace(quant, threshold=quant.threshold * (scale.astype(np.float64) / quant.scale))
        self._plan = replace(self._plan, weights=weights)

    def write(
        self,
        integers: Mapping[str, Int8[NDArray[np.int8], "..."]],
        scales: Mapping[str, float],
        biases: Mapping[str, Float32[NDArray[np.float32], "_"]],
    ) -> None:
        """Put what was tuned into the graph and into the plan.

        Args:
            integers: By weight, in its shape.
            scales: By the activation's name in the plan, in its own unit.
            biases: By layer.
        """
        initializers = self.model.graph.initializers
        of_weight = {
            node.outputs[0].name: node.inputs[0] for node in self.model.graph if node.op_type == "DequantizeLinear"
        }
        arrays: dict[str, NDArray[Any]] = {required_name(of_weight[name]): array for name, array in integers.items()}
        arrays |= {
            site.scale: np.asarray(scales[site.key], np.float32) for site in self.sites.values() if site.key in scales
        }
        arrays |= {self.bias_names((layer,))[layer]: bias.astype(np.float32) for layer, bias in biases.items()}
        for name, array in arrays.items():
            initializers[name].const_value = ir.Tensor(array, name=name)
        self._plan = self._with(integers, scales, biases)

    def _with(
        self,
        integers: Mapping[str, Int8[NDArray[np.int8], "..."]],
        scales: Mapping[str, float],
        biases: Mapping[str, Float32[NDArray[np.float32], "_"]],
    ) -> QuantPlan:
        plan = self._plan
        activations = dict(plan.activations)
        for key, scale in scales.items():
            quant = activations[key]
            activations[key] = replace(quant, threshold=np.asarray(scale * quant.threshold / quant.scale))
        return replace(
            plan,
            activations=activations,
            integers={**plan.integers, **integers},
            biases={**plan.biases, **biases},
        )

    def plan(self) -> QuantPlan:
        """The plan with all that was written; biases lie on the grid of the accumulator again."""
        plan = self._plan
        biases = {}
        for layer, bias in plan.biases.items():
            node = self._layers[layer]
            source, weight = required_name(node.inputs[0]), required_name(node.inputs[1])
            read = plan.read_quant(source)
            if read is not None and not plan.bias_quants:
                bias = on_accumulator_grid(node, bias, read, plan.weights[weight])
            biases[layer] = bias
        return replace(plan, biases=biases)
