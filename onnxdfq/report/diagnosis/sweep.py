"""What each quantizer costs the outputs alone, and what is left of the noise when one layer is float."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from onnxdfq.calibration.noise import Energies, energies, errors, mean_share
from onnxdfq.report.diagnosis.runs import Runs
from onnxdfq.report.diagnosis.switches import Network, Switched, Values
from passes.graph.bodies import nodes_within
from passes.graph.compared import compared_values
from passes.graph.editing import name_of
from passes.graph.liveness import Liveness
from passes.graph.parts import parts_of

NEAR = 8  # nodes that are rather run again than that another part of the graph is made ready


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Noise power over signal power at the outputs, the mean over their parts.

    alone: of each thing that is quantized alone. all_but: of the whole network when one thing is float. whole: of the
    quantized network. outputs: of each output of the network as a whole.
    """

    alone: Mapping[str, float]
    all_but: Mapping[str, float]
    whole: float
    outputs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is switched together. name: under which its cost is told. parts: names of quantizers and constants.

    alone: whether it is quantized alone, or the only thing that is not.
    """

    name: str
    parts: frozenset[str]
    alone: bool


def measure_costs(network: Network, runs: Runs, trials: Sequence[Trial], *, advance: Callable[[str], None]) -> Costs:
    """Each trial runs the graph from the first node that it changes, or a little before; the rest is run once.

    Args:
        network: To be measured.
        runs: Of it, on the samples to measure with.
        trials: What to switch.
        advance: Called after each trial.
    """
    sweep = _Sweep(network, runs)
    first = sweep.places()
    alone: dict[str, float] = {}
    all_but: dict[str, float] = {}
    tail: Switched | None = None
    point = -1
    for trial in sorted(trials, key=lambda one: min((first[part] for part in one.parts), default=0)):
        place = min((first[part] for part in trial.parts), default=0)
        if tail is None or place > point + NEAR:
            sweep.move_to(place)
            tail, point = sweep.tail(), place
        if trial.alone:
            alone[trial.name] = sweep.loss(tail, trial.parts, base=0)
        else:
            all_but[trial.name] = sweep.loss(tail, network.everything - trial.parts, base=1)
        advance(trial.name)
    return Costs(alone=alone, all_but=all_but, whole=sweep.whole, outputs=sweep.by_output)


class _Sweep:
    """The values of all samples at one point of the graph, which moves forward only: of the float network and of the
    quantized one."""

    def __init__(self, network: Network, runs: Runs) -> None:
        self._network, model = network, network.model
        compared = compared_values(model.graph)
        self._liveness = Liveness(model.graph, compared)
        self._outputs = [value.name or "" for value in compared]
        self._parts = {value.name or "": parts_of(value) for value in compared}
        self._point = 0
        self._states: list[Sequence[Values]] = [runs.given, runs.given]
        self._exact = runs.exact
        self._signal = energies(self._exact, self._parts)
        noise = self._noise(runs.noisy)
        self.whole = mean_share(noise, self._signal)
        signals, noises = (_by_output(table) for table in (self._signal, noise))
        self.by_output = {name: noises[name] / energy for name, energy in signals.items() if energy > 0}

    def places(self) -> dict[str, int]:
        """Quantizer or constant → the first node that it changes."""
        found: dict[str, int] = {}
        for place, node in enumerate(self._network.model.graph):
            for inner in nodes_within(node):
                for value in (*inner.inputs, *inner.outputs):
                    if value is not None and (value.is_initializer() or value.producer() is inner):
                        found.setdefault(name_of(value), place)
        return found

    def move_to(self, point: int) -> None:
        """Run the nodes up to `point`, a place in the graph."""
        if point == self._point:
            return
        between = self._network.graph(list(self._states[0][0]), self._liveness.alive(point))
        sets: tuple[Set[str], Set[str]] = (frozenset(), self._network.everything)
        self._states = [
            [between.run(state, on) for state in states] for states, on in zip(self._states, sets, strict=True)
        ]
        self._point = point

    def tail(self) -> Switched:
        """The graph from here to the outputs."""
        return self._network.graph(list(self._states[0][0]), self._outputs)

    def loss(self, tail: Switched, on: Set[str], *, base: int) -> float:
        """Noise over signal when `tail` runs from here. base: 0 from the float values, 1 from the quantized ones."""
        return mean_share(self._noise(tail.run(state, on) for state in self._states[base]), self._signal)

    def _noise(self, batches: Iterable[Values]) -> Energies:
        return energies((errors(*pair) for pair in zip(batches, self._exact, strict=True)), self._parts)


def _by_output(table: Energies) -> dict[str, float]:
    total: dict[str, float] = {}
    for (name, _), energy in table.items():
        total[name] = total.get(name, 0.0) + energy
    return total
