"""How much each layer costs the outputs when it alone is quantized, measured on images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.calibration.noise import energies, errors, mean_share
from onnxdfq.calibration.screening import rounded
from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.errors import InputError
from onnxdfq.images.samples import SamplesLike
from passes.graph.compared import compared_values
from passes.graph.editing import FreshNames, set_constant_input
from passes.graph.liveness import Liveness
from passes.graph.parts import parts_of
from passes.quantize.plan import QuantPlan, TensorQuant

Values = dict[str, Tensor]

MOST_NODES = 2**17  # that run in all, for who chooses what to measure: each measurement runs all that is behind it


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What each layer and activation costs the outputs when it alone is quantized: noise power over signal power.

    weights: node name → bits → loss. activations: value name → bits → loss. A loss is the mean over the outputs,
    and over their parts where a Concat put these together.

    The rounding errors of two layers have little in common, so their powers nearly add up: the sum over all layers is
    what a plan is judged by. (At 4 to 6 bits the sum was within a factor of 2.5 of the whole on four networks.)
    """

    weights: Mapping[str, Mapping[int, float]]
    activations: Mapping[str, Mapping[int, float]]

    def to_lists(self) -> list[list[tuple[str, int, float]]]:
        """As JSON can say it, whose keys are texts."""
        return [
            [(name, bits, loss) for name, losses in table.items() for bits, loss in losses.items()]
            for table in (self.weights, self.activations)
        ]

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[tuple[str, int, float]]]) -> Self:
        """What `to_lists` gave."""
        tables: list[dict[str, dict[int, float]]] = [{}, {}]
        for table, rows in zip(tables, lists, strict=True):
            for name, bits, loss in rows:
                table.setdefault(name, {})[bits] = loss
        return cls(weights=tables[0], activations=tables[1])


def measure_sensitivity(
    model: ir.Model,
    pixels: SamplesLike,
    *,
    weights: Mapping[str, Mapping[int, QuantPlan]],
    activations: Mapping[str, Mapping[int, QuantPlan]],
    batch_size: int,
    device: str,
    advance: Callable[[str], None],
) -> Sensitivity:
    """Quantize one thing at a time and run the graph from there to its outputs.

    Memory: the values of all images at one point of the graph.

    Args:
        model: Float, BatchNormalization folded; it is only read.
        pixels: In the model's input units.
        weights: Node name → bits → the plan whose weight and bias that layer takes.
        activations: Value name → bits → the plan whose grid the value takes. (Any number that tells plans apart will
            do for bits, here and above.)
        batch_size: Images at once, where the model leaves it open.
        device: Where the network runs.
        advance: Called after each measurement, with a note.

    Raises:
        DataError: The images do not fit the model's input.
        InputError: The model has no float output.
    """
    sweep = _Sweep(_with_biases(model, weights), pixels, batch_size, device)
    loss_w: dict[str, dict[int, float]] = {}
    loss_a: dict[str, dict[int, float]] = {}
    for value in model.graph.inputs:
        if (name := value.name or "") in activations:
            loss_a[name] = _of_activation(sweep, name, activations[name], advance)
    for index, node in enumerate(model.graph):
        if (name := node.name or "") in weights:
            sweep.move_to(index)
            loss_w[name] = _of_weight(sweep, node, weights[name], advance)
        for value in node.outputs:
            if (name := value.name or "") in activations:
                sweep.move_to(index + 1)
                loss_a[name] = _of_activation(sweep, name, activations[name], advance)
    return Sensitivity(weights=loss_w, activations=loss_a)


def nodes_behind(model: ir.Model) -> dict[str, int]:
    """Value name → how many nodes run when it is measured: those behind it."""
    count = len(model.graph)
    behind = dict.fromkeys((value.name or "" for value in model.graph.inputs), count)
    for place, node in enumerate(model.graph, start=1):
        behind |= dict.fromkeys((value.name or "" for value in node.outputs), count - place)
    return behind


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
    """The values of all images at one point of the graph, which moves forward only; kept is what later nodes read."""

    def __init__(self, model: ir.Model, pixels: SamplesLike, batch_size: int, device: str) -> None:
        self._model, self._device = model, device
        self.nodes = {node.name or "": node for node in model.graph}
        compared = compared_values(model.graph)
        self._outputs = [value.name or "" for value in compared]
        self._parts = {value.name or "": parts_of(value) for value in compared}
        self._liveness = Liveness(model.graph, [*model.graph.outputs, *compared])
        if not self._outputs:
            raise InputError("The model computes no floating-point output, so there is nothing to measure a loss on.")
        feeds = Feeds(model)
        self._point = 0
        self._states: list[Values] = [
            dict(zip(feeds.names, map(channels_last, batch), strict=True))
            for batch in feeds.batches(feeds.names, pixels, batch_size, device)
        ]
        graph = self.downstream()
        self._float_outputs = [_run(graph, state) for state in self._states]
        self._signal = energies(self._float_outputs, self._parts)

    def move_to(self, point: int) -> None:
        """Run the nodes up to `point`, a place in the graph."""
        if point == self._point:
            return
        between = self._graph(list(self._states[0]), self._liveness.alive(point))
        self._states = [_run(between, state) for state in self._states]
        self._point = point

    def downstream(self, *given: str) -> TorchGraph:
        """The graph from here to the outputs, with these initializers as inputs."""
        return self._graph([*self._states[0], *given], self._outputs)

    def loss(
        self, downstream: TorchGraph, given: Values, change: Callable[[Values], Values] = lambda state: state
    ) -> float:
        """Noise over signal when `downstream` runs from here. given: its initializers. change: of the values here."""
        found = (
            errors(_run(downstream, state | change(state) | given), exact)
            for state, exact in zip(self._states, self._float_outputs, strict=True)
        )
        return mean_share(energies(found, self._parts), self._signal)

    def tensor(self, array: Float[NDArray[np.floating], "*shape"]) -> Float32[Tensor, "*shape"]:
        """As an initializer that is given."""
        return torch.from_numpy(array.astype(np.float32)).to(self._device)

    def _graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> TorchGraph:
        return TorchGraph(self._model, inputs=inputs, outputs=outputs).to(self._device).eval()


def _run(graph: TorchGraph, values: Values) -> Values:
    with torch.no_grad():
        return dict(graph.stream(*(values[name] for name in graph.input_names)))


def _of_weight(
    sweep: _Sweep, node: ir.Node, plans: Mapping[int, QuantPlan], advance: Callable[[str], None]
) -> dict[int, float]:
    name = node.name or ""
    weight = next(value for value in node.inputs[:2] if value is not None and value.is_initializer())
    assert weight.name is not None
    assert weight.const_value is not None
    layer = sweep.nodes[name]
    bias = layer.inputs[2].name if any(name in plan.biases for plan in plans.values()) and layer.inputs[2] else None
    downstream = sweep.downstream(weight.name, *([] if bias is None else [bias]))
    losses = {}
    for bits, plan in plans.items():
        given = {weight.name: sweep.tensor(plan.rounded_weight(weight.name, weight.const_value.numpy()))}
        if bias is not None:
            given[bias] = sweep.tensor(plan.biases[name])
        losses[bits] = sweep.loss(downstream, given)
        advance("weights")
    return losses


def _of_activation(
    sweep: _Sweep, name: str, plans: Mapping[int, QuantPlan], advance: Callable[[str], None]
) -> dict[int, float]:
    downstream = sweep.downstream()
    losses = {}
    for bits, plan in plans.items():
        shift = plan.shifts.get(name, 0.0)
        quant = plan.read_quant(name)
        assert quant is not None
        losses[bits] = sweep.loss(downstream, {}, partial(_rounded, name=name, quant=quant, shift=shift))
        advance("activations")
    return losses


def _rounded(state: Values, *, name: str, quant: TensorQuant, shift: float) -> Values:
    return {name: rounded(state[name], quant, shift)}
