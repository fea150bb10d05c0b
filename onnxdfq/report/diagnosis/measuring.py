"""Numbers of a diagnosis: what to switch, what was seen, and what each thing costs."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np

from onnxdfq.progress import Progress, Steps
from onnxdfq.report.diagnosis.estimating import NOTHING, Estimates, estimate_costs
from onnxdfq.report.diagnosis.evidence import Level
from onnxdfq.report.diagnosis.layers import Layer
from onnxdfq.report.diagnosis.runs import Runs
from onnxdfq.report.diagnosis.sweep import Costs, Trial, measure_costs
from onnxdfq.report.diagnosis.switches import Network
from passes.graph.bodies import nodes_within
from passes.graph.editing import name_of
from passes.quantize.quantizers import QuantizedConstant

SWITCHED = 16  # samples that trials run on
APART = 1e-4  # mean square of what a stored bias is off, over that of the layer's output: worth a trial of its own
# that run where everything is switched alone, with which a network counts as long: its costs are estimated, but for
# those of the worst layers. (Of networks for 224×224 pixels ResNet-18 is not, and ResNet-50 is.)
LONG_NODES = 2**13
WORST, ROUNDS = 3, 3  # layers of a long network whose costs are measured; and how often others may turn out as worse
MOST_NODES = 2**17  # that run in all trials together where no gradient tells what they cost


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """runs: of both networks. costs: by name of quantizer or constant, and of the layer for all_but; together:
    constant → the one that it was switched with. estimated: names of layers whose costs were not measured; left_out:
    how many have none."""

    runs: Runs
    costs: Costs
    together: Mapping[str, str]
    estimated: frozenset[str]
    left_out: int

    def cost(self, names: Iterable[str]) -> float | None:
        """Noise over signal of these, each alone: rounding errors have little in common, so powers add up. None where
        none was measured."""
        known = dict.fromkeys(self.together.get(name, name) for name in names)
        found = [self.costs.alone[name] for name in known if name in self.costs.alone]
        return sum(found) if found else None


def is_long(network: Network, stored: Set[str]) -> bool:
    """Whether to switch each of its quantizers alone takes longer than anybody waits for. stored: names of quantized
    constants."""
    return sum(_behind(network, network.quantizers.keys() | stored).values()) > LONG_NODES


def measure(
    network: Network,
    layers: Sequence[Layer],
    stored: Mapping[str, QuantizedConstant],
    runs: Runs,
    *,
    progress: Callable[[str], Progress | None],
) -> Measured:
    """Switch every quantizer; of a long network those of the worst layers, and estimate the others.

    Args:
        network: Of the file.
        layers: Of the network.
        stored: Quantized constants of the file.
        runs: Of the network.
        progress: Makes the display of one long stage.
    """
    together = _together(network, layers, stored, runs.levels)
    trials = _trials(network, layers, together)
    every = [trial for several in trials.values() for trial in several]
    if is_long(network, stored.keys()):
        estimates = estimate_costs(network, runs, every)
        costs, kept = _measured_where_worst(network, runs, trials, estimates, progress)
    else:
        estimates, kept = NOTHING, frozenset(trials)
        costs = measure_costs(network, runs, every, advance=Steps(progress("switching layers"), len(every)))
    known = frozenset(name for name, several in trials.items() if name not in kept and _is_known(several, estimates))
    return Measured(
        runs=runs, costs=costs, together=together, estimated=known, left_out=len(trials) - len(kept) - len(known)
    )


def _measured_where_worst(
    network: Network,
    runs: Runs,
    trials: Mapping[str, Sequence[Trial]],
    estimates: Estimates,
    progress: Callable[[str], Progress | None],
) -> tuple[Costs, frozenset[str]]:
    """All costs, and the names of the layers whose costs are measured: those that no gradient tells of, as many as
    anybody waits for, and the worst; where others turn out as worse then, these too."""
    unknown = _unknown(network, trials, estimates)
    alone, all_but = dict(estimates.alone), dict[str, float]()
    kept: dict[str, None] = {}
    for _ in range(ROUNDS):
        worst = sorted(trials, key=lambda name: -_harm(trials[name], alone))[:WORST]
        new = [name for name in dict.fromkeys([*unknown, *worst]) if name not in kept]
        if kept and not new:
            break
        several = [trial for name in new for trial in trials[name]]
        costs = measure_costs(network, runs, several, advance=Steps(progress("switching layers"), len(several)))
        alone |= costs.alone
        all_but |= costs.all_but
        kept |= dict.fromkeys(new)
    return replace(costs, alone=alone, all_but={**estimates.left_of(costs.whole), **all_but}), frozenset(kept)


def _harm(trials: Sequence[Trial], alone: Mapping[str, float]) -> float:
    return sum(alone.get(trial.name, 0.0) for trial in trials if trial.alone)


def inputs_of_concats(layers: Sequence[Layer]) -> list[str]:
    """Names of values whose ranges are compared."""
    return [
        name_of(value)
        for layer in layers
        if layer.node is not None and layer.op_type == "Concat"
        for value in layer.node.inputs
        if value is not None and not value.is_initializer()
    ]


def _behind(network: Network, names: Iterable[str]) -> dict[str, int]:
    """Quantizer or constant → how many nodes run when it is switched: from the first that it changes."""
    graph = network.model.graph
    count, found = len(graph), dict.fromkeys(names, 0)
    for place, node in enumerate(graph):
        for value in (value for inner in nodes_within(node) for value in (*inner.inputs, *inner.outputs)):
            name = name_of(value)
            if name in found:
                found[name] = max(found[name], count - place)
    return found


def _is_known(trials: Sequence[Trial], estimates: Estimates) -> bool:
    return all(trial.name in (estimates.alone if trial.alone else estimates.all_but) for trial in trials)


def _unknown(network: Network, trials: Mapping[str, Sequence[Trial]], estimates: Estimates) -> list[str]:
    """Layers that nothing is known of, as many as anybody waits for."""
    behind, left, found = _behind(network, network.everything), MOST_NODES, list[str]()
    for name, several in trials.items():
        if not _is_known(several, estimates):
            left -= sum(max((behind[part] for part in trial.parts), default=0) for trial in several)
            if left < 0:
                break
            found.append(name)
    return found


def _together(
    network: Network,
    layers: Sequence[Layer],
    stored: Mapping[str, QuantizedConstant],
    levels: Mapping[str, Level],
) -> dict[str, str]:
    """Constant → under which name it is switched: a corrected bias belongs to its weight, and one on a bad grid stands
    alone."""
    found = {}
    for layer in layers:
        first = next((name for name in (layer.weight, layer.bias, *layer.others) if name in network.constants), None)
        for name in layer.constants & network.constants.keys():
            output = None if layer.node is None else levels.get(name_of(layer.node.outputs[0]))
            pair = network.constants[name]
            off = float(np.square(pair.quantized.astype(np.float64) - pair.floats).mean())
            alone = name == layer.bias and name in stored and output is not None and off > APART * output.signal
            found[name] = name if alone or first is None else first
    return found


def _trials(network: Network, layers: Sequence[Layer], together: Mapping[str, str]) -> dict[str, list[Trial]]:
    """By name of the layer: each of its quantizers and constants alone, then all but the layer."""
    several: dict[str, set[str]] = {}
    for name, first in together.items():
        several.setdefault(first, set()).add(name)
    found: dict[str, list[Trial]] = {}
    told: set[str] = set()
    for layer in layers:
        parts = layer.parts & network.everything
        if not parts:
            continue
        names = [*layer.activations, *sorted({together[name] for name in layer.constants & together.keys()} - told)]
        told.update(names)
        found[layer.name] = [
            *(Trial(name=name, parts=frozenset(several.get(name, {name})), alone=True) for name in names),
            Trial(name=layer.name, parts=parts, alone=False),
        ]
    return found
