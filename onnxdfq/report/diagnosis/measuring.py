"""Numbers of a diagnosis: what to switch, what was seen, and what each thing costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxdfq.calibration.sensitivity import MOST_NODES
from onnxdfq.images.samples import Samples
from onnxdfq.model_file import batch_of
from onnxdfq.progress import Progress, Steps
from onnxdfq.report.diagnosis.evidence import Evidence, gather
from onnxdfq.report.diagnosis.layers import Layer
from onnxdfq.report.diagnosis.sweep import Costs, Trial, measure_costs
from onnxdfq.report.diagnosis.switches import Network
from passes.graph.editing import name_of
from passes.quantize.quantizers import QuantizedConstant

SWITCHED = 16  # samples that trials run on
APART = 1e-4  # mean square of what a stored bias is off, over that of the layer's output: worth a trial of its own


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """evidence: by name of the float value. costs: by name of quantizer or constant, and of the layer for all_but;
    together: constant → the one that it was switched with."""

    evidence: Mapping[str, Evidence]
    costs: Costs
    together: Mapping[str, str]
    left_out: int

    def cost(self, names: Iterable[str]) -> float | None:
        """Noise over signal of these, each alone: rounding errors have little in common, so powers add up. None where
        none was measured."""
        known = dict.fromkeys(self.together.get(name, name) for name in names)
        found = [self.costs.alone[name] for name in known if name in self.costs.alone]
        return sum(found) if found else None


def measure(
    network: Network,
    layers: Sequence[Layer],
    stored: Mapping[str, QuantizedConstant],
    samples: Samples,
    *,
    progress: Callable[[str], Progress | None],
) -> Measured:
    """Look at every value, then switch every quantizer.

    Args:
        network: Of the file.
        layers: Of the network.
        stored: Quantized constants of the file.
        samples: In the model's input units.
        progress: Makes the display of one long stage.
    """
    evidence = gather(network, samples, _watched(network, layers))
    together = _together(network, layers, stored, evidence)
    trials = _trials(network, layers, together, evidence)
    kept = _affordable(network, trials)
    size = max(SWITCHED, batch_of(network.model) or 1)
    costs = measure_costs(network, samples[:size], kept, advance=Steps(progress("switching layers"), len(kept)))
    return Measured(evidence=evidence, costs=costs, together=together, left_out=len(trials) - len(kept))


def _watched(network: Network, layers: Sequence[Layer]) -> list[str]:
    """Names of values that causes ask for."""
    names = [*(one.source for one in network.quantizers.values()), *network.quantizers]
    for layer in layers:
        if layer.node is None:
            continue
        names.append(name_of(layer.node.outputs[0]))
        if layer.op_type == "Concat":
            names.extend(
                name_of(value) for value in layer.node.inputs if value is not None and not value.is_initializer()
            )
    return list(dict.fromkeys(names))


def _together(
    network: Network,
    layers: Sequence[Layer],
    stored: Mapping[str, QuantizedConstant],
    evidence: Mapping[str, Evidence],
) -> dict[str, str]:
    """Constant → under which name it is switched: a corrected bias belongs to its weight, and one on a bad grid stands
    alone."""
    found = {}
    for layer in layers:
        first = next((name for name in (layer.weight, layer.bias, *layer.others) if name in network.constants), None)
        for name in layer.constants & network.constants.keys():
            output = None if layer.node is None else evidence.get(name_of(layer.node.outputs[0]))
            pair = network.constants[name]
            off = float(np.square(pair.quantized.astype(np.float64) - pair.floats).mean())
            alone = name == layer.bias and name in stored and output is not None and off > APART * output.signal
            found[name] = name if alone or first is None else first
    return found


def _trials(
    network: Network, layers: Sequence[Layer], together: Mapping[str, str], evidence: Mapping[str, Evidence]
) -> list[Trial]:
    """Each quantizer and constant alone, the noisiest first; then all but each layer."""
    alone: list[tuple[float, Trial]] = []
    for name in (name for layer in layers for name in layer.activations):
        quantizer = network.quantizers[name]
        seen = evidence.get(quantizer.source)
        error = np.inf
        if seen is not None and quantizer.grid.per_tensor and seen.signal > 0:
            found = quantizer.round_trip(seen.points) - seen.points
            error = float(np.square(found) @ seen.counts) / max(seen.total, 1) / seen.signal
        alone.append((error, Trial(name=name, parts=frozenset({name}), alone=True)))
    for first in dict.fromkeys(together.values()):
        parts = frozenset(name for name, other in together.items() if other == first)
        pair = network.constants[first]
        error = float(np.square(pair.quantized - pair.floats).sum() / max(np.square(pair.floats).sum(), 1e-30))
        alone.append((error, Trial(name=first, parts=parts, alone=True)))
    rest = []
    for layer in layers:
        parts = layer.parts & network.everything
        if parts:
            rest.append(Trial(name=layer.name, parts=parts, alone=False))
    return [trial for _, trial in sorted(alone, key=lambda pair: -pair[0])] + rest


def _affordable(network: Network, trials: Sequence[Trial]) -> list[Trial]:
    """The first of them that together run no more nodes than anybody waits for."""
    graph = network.model.graph
    place: dict[str, int] = {}
    for index, node in enumerate(graph):
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                place.setdefault(name_of(value), index)
    count, left, kept = len(graph), MOST_NODES, []
    for trial in trials:
        left -= count - min(place.get(part, 0) for part in trial.parts)
        if left < 0:
            break
        kept.append(trial)
    return kept
