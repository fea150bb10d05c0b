"""How much each layer costs the outputs when it alone is quantized, measured on images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import InputError
from passes.graph.editing import FreshNames, set_constant_input
from passes.quantize.plan import QuantPlan, TensorQuant

Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Noise over signal at the outputs, power by power, averaged over the outputs; what is not quantized gives none.

    weights: node name → bits → loss. activations: value name → bits → loss.
    The rounding errors of two layers have little in common, so their powers nearly add up: the sum over all layers is
    what a plan is judged by. (At 4 to 6 bits the sum was within a factor of 2.5 of the whole on four networks.)
    """

    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[int, float]]


def measure_sensitivity(
    model: ir.Model,
    pixels: NDArray[np.float32],
    *,
    weights: Mapping[str, Mapping[int, QuantPlan]],
    activations: Mapping[str, Mapping[int, QuantPlan]],
    batch_size: int,
    device: str,
    step: Callable[[str], None],
) -> Sensitivity:
    """Quantize one thing at a time and run what comes behind it. The model is float, BatchNormalization folded.

    weights: node name → bits → the plan whose weight and bias that layer takes. activations: value name → bits → the
    plan whose grid the value takes. (Any number that tells plans apart will do for bits.) step: called after each
    measurement. Memory: what all of `pixels` (N, C, H, W) are
    at one point of the graph. Raises InputError where the model has no float output.
    """
    sweep = _Sweep(_with_biases(model, weights), pixels, batch_size, device)
    loss_w: dict[str, dict[int, float]] = {}
    loss_a: dict[str, dict[int, float]] = {}
    for value in model.graph.inputs:
        if (name := value.name or "") in activations:
            loss_a[name] = _of_activation(sweep, name, activations[name], step)
    for index, node in enumerate(model.graph):
        if (name := node.name or "") in weights:
            sweep.advance(index)
            loss_w[name] = _of_weight(sweep, node, weights[name], step)
        for value in node.outputs:
            if (name := value.name or "") in activations:
                sweep.advance(index + 1)
                loss_a[name] = _of_activation(sweep, name, activations[name], step)
    return Sensitivity(weights=loss_w, activations=loss_a)


def _with_biases(model: ir.Model, weights: Mapping[str, Mapping[int, QuantPlan]]) -> ir.Model:
    """A copy in which each layer whose bias the plans set has one."""
    model = model.clone()
    names = FreshNames(model.graph)
    for node in model.graph:
        bias = next((plan.biases.get(node.name or "") for plan in weights.get(node.name or "", {}).values()), None)
        if bias is not None and (len(node.inputs) < 3 or node.inputs[2] is None):
            set_constant_input(node, 2, np.zeros_like(bias), names, f"{node.name}.bias")
    return model


class _Sweep:
    """All images at one point of the graph, which moves forward only: what later nodes read is kept, and no more."""

    def __init__(self, model: ir.Model, pixels: NDArray[np.float32], batch_size: int, device: str) -> None:
        self._model, self._device = model, device
        self.nodes = {node.name or "": node for node in model.graph}
        self._outputs = [value.name or "" for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
        if not self._outputs:
            raise InputError("The model has no float32 output, so there is nothing to measure a budget's price on.")
        feeds = Feeds(model)
        self._point = 0
        self._states: list[Values] = [
            dict(zip(feeds.names, batch, strict=True))
            for batch in feeds.batches(feeds.names, pixels, batch_size, device)
        ]
        graph = self.behind()
        self._wanted = [_run(graph, state) for state in self._states]
        self._signal = {
            name: sum(float(wanted[name].double().square().sum()) for wanted in self._wanted) for name in self._outputs
        }

    def advance(self, point: int) -> None:
        """Run the nodes up to `point`, a place in the graph."""
        if point == self._point:
            return
        needed = self._alive(point)
        between = self._graph(list(self._states[0]), needed)
        self._states = [_run(between, state) for state in self._states]
        self._point = point

    def behind(self, *given: str) -> TorchGraph:
        """The graph from here to the outputs, with these initializers as inputs."""
        return self._graph([*self._states[0], *given], self._outputs)

    def loss(
        self, behind: TorchGraph, given: Values, change: Callable[[Values], Values] = lambda state: state
    ) -> float:
        """Noise over signal when `behind` runs from here. given: its initializers. change: of the values here."""
        noise = dict.fromkeys(self._outputs, 0.0)
        for state, wanted in zip(self._states, self._wanted, strict=True):
            for name, found in _run(behind, state | change(state) | given).items():
                if found.shape == wanted[name].shape:  # else the number of rows depends on the numbers
                    noise[name] += float((found - wanted[name]).double().square().sum())
        shares = [noise[name] / self._signal[name] for name in self._outputs if self._signal[name] > 0]
        return sum(shares) / max(len(shares), 1)

    def tensor(self, array: NDArray[np.floating]) -> Tensor:
        """As an initializer that is given."""
        return torch.from_numpy(array.astype(np.float32)).to(self._device)

    def _graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> TorchGraph:
        return TorchGraph(self._model, inputs=inputs, outputs=outputs).to(self._device).eval()

    def _alive(self, point: int) -> list[str]:
        """The values that are there before the node at `point` and that it, or a later one, or an output needs."""
        nodes = list(self._model.graph)
        read = {value for node in nodes[point:] for value in node.inputs if value is not None}
        read |= set(self._model.graph.outputs)
        made = [*self._model.graph.inputs, *(value for node in nodes[:point] for value in node.outputs)]
        return [value.name or "" for value in made if value in read]


def _run(graph: TorchGraph, values: Values) -> Values:
    with torch.no_grad():
        return dict(graph.stream(*(values[name] for name in graph.input_names)))


def _of_weight(
    sweep: _Sweep, node: ir.Node, plans: Mapping[int, QuantPlan], step: Callable[[str], None]
) -> dict[int, float]:
    name = node.name or ""
    weight = next(value for value in node.inputs[:2] if value is not None and value.is_initializer())
    assert weight.name is not None
    assert weight.const_value is not None
    layer = sweep.nodes[name]
    bias = layer.inputs[2].name if any(name in plan.biases for plan in plans.values()) and layer.inputs[2] else None
    behind = sweep.behind(weight.name, *([] if bias is None else [bias]))
    losses = {}
    for bits, plan in plans.items():
        given = {weight.name: sweep.tensor(plan.rounded_weight(weight.name, weight.const_value.numpy()))}
        if bias is not None:
            given[bias] = sweep.tensor(plan.biases[name])
        losses[bits] = sweep.loss(behind, given)
        step("weights")
    return losses


def _of_activation(
    sweep: _Sweep, name: str, plans: Mapping[int, QuantPlan], step: Callable[[str], None]
) -> dict[int, float]:
    behind = sweep.behind()
    losses = {}
    for bits, plan in plans.items():
        shift = plan.shifts.get(name, 0.0)
        quant = plan.read_quant(name)
        assert quant is not None
        losses[bits] = sweep.loss(behind, {}, partial(_rounded, name=name, quant=quant, shift=shift))
        step("activations")
    return losses


def _rounded(state: Values, *, name: str, quant: TensorQuant, shift: float) -> Values:
    scale = float(quant.scale)
    return {name: ((state[name] + shift) / scale).round().clamp(*quant.range) * scale - shift}
