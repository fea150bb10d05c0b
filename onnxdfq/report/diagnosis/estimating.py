"""What each quantizer costs the outputs, estimated for all of a long network by a few gradients.

To measure one, the rest of the network runs; to measure all, it does so as often as there are layers. A small error e
of a value changes the outputs by J e, and with random signs v the square of (v J) · e is |J e|² on average; one
backward pass gives v J for every value (as `onnxdfq.calibration.screening` has it). The errors that values bring in
themselves are computed layer by layer, each from the float value that it reads.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from onnxdfq.engine.operation import is_native
from onnxdfq.report.diagnosis.runs import Runs
from onnxdfq.report.diagnosis.sweep import Trial
from onnxdfq.report.diagnosis.switches import Network, Values
from passes.graph.compared import compared_values
from passes.graph.editing import name_of
from passes.graph.parts import parts_of, split_into

logger = logging.getLogger(__name__)

PROBES = 16  # samples times random signs: figures of some 1.5 dB

Effect = Float[Tensor, "n"]
"""What errors change of v · y: by sample, or of all together where a value has no samples."""


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """As `Costs` has them. What no gradient reaches is missing."""

    alone: Mapping[str, float]
    all_but: Mapping[str, float]
    whole: float

    def left_of(self, whole: float) -> dict[str, float]:
        """all_but, once it is measured what the whole network costs: what a layer leaves nearly as it is scales with
        that, and what one layer rules does not, for it may be the rule that is estimated badly."""
        return {
            name: left * whole / self.whole if 2 * left > self.whole > 0 else left
            for name, left in self.all_but.items()
        }


NOTHING = Estimates(alone={}, all_but={}, whole=0.0)


def estimate_costs(network: Network, runs: Runs, trials: Sequence[Trial]) -> Estimates:
    """The costs of these trials, which are switched in thought only.

    Args:
        network: To look at.
        runs: Of it; all values of one batch are in memory together.
        trials: Each part of one that is not alone belongs to at most one that is.
    """
    try:
        return _Estimate(network, runs, trials).costs()
    except RuntimeError as error:  # torch has no derivative of some operator: then only what is measured is told
        logger.debug("nothing is estimated: %s", error)
        return NOTHING


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layers:
    """Nodes that read constants, none of which reads what another computes, so that each runs by itself.

    reads: names of what they read that is computed. trials: output → names of the trials that switch a constant of its
    node.
    """

    reads: dict[str, None] = field(default_factory=dict)
    trials: dict[str, frozenset[str]] = field(default_factory=dict)


class _Estimate:
    def __init__(self, network: Network, runs: Runs, trials: Sequence[Trial]) -> None:
        self._network, self._trials, self._runs = network, trials, runs
        self._parts = {name_of(value): parts_of(value) for value in compared_values(network.model.graph)}
        self._alone = {trial.name: trial.parts for trial in trials if trial.alone}
        owner = {part: name for name, parts in self._alone.items() for part in parts}
        self._within = {trial: {owner[part] for part in trial.parts if part in owner} for trial in trials}
        outside = network.quantizers.keys() - network.switches.keys()
        self._quantizers = {part: owner[part] for part in network.quantizers if part in owner and part in outside}
        self._blocked = _blocked(network)
        layers = _layers(network, {part: trial for part, trial in owner.items() if part in network.constants})
        self._local = [(one, network.graph(list(one.reads), list(one.trials))) for one in layers]
        sources = [network.quantizers[name].source for name in self._quantizers]
        around = [name for one in layers for name in (*one.reads, *one.trials)]
        wanted = list(dict.fromkeys([*self._quantizers, *sources, *around, *self._parts]))
        self._float = network.graph(list(runs.given[0]), wanted)
        self._powers = {
            name: [
                sum(float(part.double().square().sum()) for part in several)
                for several in zip(*(split_into(exact[name], parts) for exact in runs.exact), strict=True)
            ]
            for name, parts in self._parts.items()
        }

    def costs(self) -> Estimates:
        """Over all batches."""
        runs, draws = self._runs, -(-PROBES // sum(self._runs.counts))
        sums, power, signs = dict[Trial, float](), 0.0, torch.Generator().manual_seed(0)
        for count, given, exact, noisy in zip(runs.counts, runs.given, runs.exact, runs.noisy, strict=True):
            for total, effects in self._effects(given, exact, noisy, count, draws, signs):
                # what is rounded anew has other errors: their own sum tells best what is left without some of them
                whole = _sum(list(effects.values())) if effects.keys() == self._alone.keys() else total
                power += float(whole.square().sum()) / draws
                for trial, within in self._within.items():
                    if effects.keys() >= within:
                        own = _sum([effects[name] for name in within])
                        changed = own if trial.alone else _sum([whole, -own])
                        sums[trial] = sums.get(trial, 0.0) + float(changed.square().sum()) / draws
        return Estimates(
            alone={trial.name: cost for trial, cost in sums.items() if trial.alone},
            all_but={trial.name: cost for trial, cost in sums.items() if not trial.alone},
            whole=power,
        )

    def _effects(
        self, given: Values, exact: Values, noisy: Values, count: int, draws: int, signs: torch.Generator
    ) -> Iterator[tuple[Effect, Mapping[str, Effect]]]:
        """For each of some random v, of one batch: what all errors together change of v · y, and by name of the trial
        what each does, where gradients reach all that it changes."""
        values = self._values(given)
        plain = {name: value.detach() for name, value in values.items()}
        errors = self._errors(plain)
        changed = dict.fromkeys(name for several in errors.values() for name, _ in several)
        reached = [name for name in changed if values[name].requires_grad and name not in self._blocked]
        errors = {trial: several for trial, several in errors.items() if {name for name, _ in several} <= {*reached}}
        for more in reversed(range(draws)):
            weights = self._weights(exact, signs)
            loss = torch.stack([(values[name] * weight).sum() for name, weight in weights.items()]).sum()
            found = torch.autograd.grad(loss, [values[name] for name in reached], None, more > 0, allow_unused=True)
            slopes = {name: one for name, one in zip(reached, found, strict=True) if one is not None}
            yield (
                _sum([_product(noisy[name] - exact[name], weight, count) for name, weight in weights.items()]),
                {
                    trial: _sum([_product(slopes[name], error, count) for name, error in several if name in slopes])
                    for trial, several in errors.items()
                },
            )

    def _values(self, given: Values) -> Values:
        """Of the float network, with what gradients need."""
        network = self._network
        leaves = {name: tensor.detach() for name, tensor in given.items()}
        leaves |= {name: network.constant(name, quantized=False).detach() for name in network.constants}
        return self._float.run(
            {name: tensor.requires_grad_(tensor.is_floating_point()) for name, tensor in leaves.items()}, frozenset()
        )

    def _weights(self, exact: Values, signs: torch.Generator) -> Values:
        """Random signs of each output, over the power of the part that it is of: squares of sums are then `Costs`."""
        count = max(sum(power > 0 for each in self._powers.values() for power in each), 1)
        found = {}
        for name, parts in self._parts.items():
            weight = (torch.randint(0, 2, exact[name].shape, generator=signs) * 2 - 1).to(exact[name])
            for part, power in zip(split_into(weight, parts), self._powers[name], strict=True):
                part *= (power * count) ** -0.5 if power > 0 else 0.0
            found[name] = weight
        return found

    @torch.no_grad()
    def _errors(self, plain: Values) -> dict[str, list[tuple[str, Tensor]]]:
        """By name of the trial: values, and the errors that it brings into them, at float values."""
        network = self._network
        found: dict[str, list[tuple[str, Tensor]]] = {}
        for name, trial in self._quantizers.items():
            error = network.rounded(name, plain[network.quantizers[name].source]) - plain[name]
            found.setdefault(trial, []).append((name, error))
        for layers, graph in self._local:
            read = {name: plain[name] for name in layers.reads}
            for several in _apart(layers.trials.values()):
                switched = graph.run(read, frozenset().union(*(self._alone[trial] for trial in several)))
                for output, trials in layers.trials.items():
                    for trial in trials & several:
                        found.setdefault(trial, []).append((output, switched[output] - plain[output]))
        return found


def _layers(network: Network, trials: Mapping[str, str]) -> list[_Layers]:
    """Nodes that read constants. trials: constant → name of the trial that switches it."""
    found: list[_Layers] = []
    for node in network.model.graph:
        values = [value for value in node.inputs if value is not None]
        switching = frozenset(trials[name_of(value)] for value in values if name_of(value) in trials)
        if not switching:
            continue
        output, reads = name_of(node.outputs[0]), [name_of(value) for value in values if not value.is_initializer()]
        group = next((one for one in found if output not in one.reads and not one.trials.keys() & reads), None)
        if group is None:
            found.append(group := _Layers())
        group.reads.update(dict.fromkeys(reads))
        group.trials[output] = switching
    return found


def _blocked(network: Network) -> set[str]:
    """Values that not all gradients reach, as ONNX Runtime computes something behind them and lets none through."""
    found: set[str] = set()
    for node in reversed(network.model.graph):
        floats = any(value.dtype is not None and value.dtype.is_floating_point() for value in node.outputs)
        if found.intersection(map(name_of, node.outputs)) or (floats and not is_native(node)):
            found.update(name_of(value) for value in node.inputs if value is not None)
    return found


def _product(one: Tensor, other: Tensor, count: int) -> Effect:
    """Of two tensors, by sample where they have so many."""
    if not one.ndim or len(one) != count:
        return (one * other).sum().reshape(1)
    found: Tensor = torch.linalg.vecdot(one.reshape(count, -1), other.reshape(count, -1))
    return found


def _sum(effects: Sequence[Effect]) -> Effect:
    if not effects:
        return torch.zeros(1)
    if len({len(effect) for effect in effects}) > 1:
        effects = [effect.sum().reshape(1) for effect in effects]
    return torch.stack(list(effects)).sum(0)


def _apart(layers: Iterable[Set[str]]) -> list[Set[str]]:
    """Trials in groups, no two of which change the same layer."""
    groups: list[tuple[set[str], set[int]]] = []
    places: dict[str, set[int]] = {}
    for place, trials in enumerate(layers):
        for trial in trials:
            places.setdefault(trial, set()).add(place)
    for trial, own in places.items():
        group = next((one for one in groups if not one[1] & own), None)
        if group is None:
            groups.append(({trial}, set(own)))
        else:
            group[0].add(trial)
            group[1].update(own)
    return [group[0] for group in groups]
