"""Channels under a budget: what the network costs, what the loss of each group's harms, and the choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session
from onnxdfq.evaluation.latency import latencies
from onnxdfq.images.samples import Samples
from onnxdfq.methods.method import Measurement, Note, Run
from onnxdfq.model_file import fillings, main_input
from onnxdfq.pruning.allocation import allocate, greatest
from onnxdfq.pruning.harms import channel_options, measure_harms
from onnxdfq.recipe.budget import Budget
from passes.graph.work import work_per_sample
from passes.prune.channels import ChannelChoice
from passes.prune.remove_channels import RemoveChannels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxdfq.images.images import Images


class Costs:
    """What a network costs in the unit of a budget, without shares of its channels.

    Args:
        graph: canonical.
        choice: which channels go at a ratio.
        budget: of which kind, and a share of what.
        session: of the file, beside which latency is measured.

    Attributes:
        whole: of the network as it is.
        budget: with its limit in that unit.
    """

    def __init__(self, graph: ir.Model, choice: ChannelChoice, budget: Budget, session: Session) -> None:
        self._graph, self._choice, self._kind, self._session = graph, choice, budget.kind, session
        self.whole = self((0.0,) * len(choice.groups))
        self.budget = budget.of(self.whole)

    def __call__(self, ratios: Sequence[float]) -> float:
        """Of a ratio for each group."""
        if self._kind == "latency":
            return latency(self._session, Session(self._session.path, self._without(ratios)), self._graph)[1]
        return self.counted(ratios)

    def counted(self, ratios: Sequence[float]) -> float:
        """The same, of latency multiplications: what a group alone spares of time is too little to be measured."""
        pruned = self._without(ratios)
        if self._kind == "size":
            return parameter_bytes(pruned)
        return work_per_sample(pruned.graph).macs

    def _without(self, ratios: Sequence[float]) -> ir.Model:
        pruned = self._graph.clone()
        RemoveChannels(self._choice.plan(ratios))(pruned)
        return pruned


def parameter_bytes(graph: ir.Model) -> int:
    """Of all constants that the graph holds."""
    values = graph.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def latency(session: Session, other: Session, graph: ir.Model) -> tuple[float, float]:
    """Milliseconds for one sample of both, the models' batch where it is fixed."""
    spec = main_input(graph)
    return latencies(session, other, Samples(main=fillings(graph)[spec.name].draw(spec, 1, 0)))


def check_budget(graph: ir.Model, choice: ChannelChoice, budget: Budget, session: Session, source: Path) -> None:
    """Before there is any image.

    Raises:
        InputError: the network costs no more as it is, or more without all that may go.
    """
    _least(Costs(graph, choice, budget, session), choice, source)


def ratios_within(
    graph: ir.Model,
    choice: ChannelChoice,
    budget: Budget,
    session: Session,
    images: Images,
    source: Path,
    run: Run,
) -> Sequence[float]:
    """The share of channels that goes of each group, and what was measured to find it, which `run` is told.

    Raises:
        InputError: as `check_budget` does.
    """
    costs = Costs(graph, choice, budget, session)
    _least(costs, choice, source)
    options = measure_harms(
        graph, choice, images.samples, device=run.device, progress=run.progress("measuring what channels are worth")
    )
    ratios = allocate(options, costs, costs.budget.limit, alone=costs.counted)
    if ratios is None:  # of a latency that was within the budget a moment ago
        raise _unmet(costs, costs(greatest(options)), source)
    table = {
        names[0]: {
            "layers": list(names),
            "options": [{"ratio": one.ratio, "removed": one.removed, "harm": one.harm} for one in each],
            "chosen": ratio,
        }
        for names, each, ratio in zip(choice.groups, options, ratios, strict=True)
    }
    run.tell(Measurement(values={"sensitivity": table, "budget": str(costs.budget)}))
    return ratios


def verify_latency(budget: Budget, session: Session, pruned: Session, graph: ir.Model, run: Run) -> None:
    """Measures the file that was written, and says so where it takes longer than it may."""
    before, after = latency(session, pruned, graph)
    run.tell(Measurement(values={"latency_ms_float": round(before, 4), "latency_ms": round(after, 4)}))
    limit = budget.of(before).limit
    if after > limit:
        run.tell(
            Note(
                text=f"Measured once more the file takes {after:.3g} ms, and the budget is {limit:.3g} ms: what else "
                "the machine does is within that. Ask for a little less."
            )
        )


def _least(costs: Costs, choice: ChannelChoice, source: Path) -> None:
    if costs.whole <= costs.budget.limit:
        raise InputError(
            f"{source}: --budget {costs.budget} leaves nothing to prune: the model costs "
            f"{costs.budget.rounded_up(costs.whole)}."
        )
    least = costs(greatest(channel_options(choice)))
    if least > costs.budget.limit:
        raise _unmet(costs, least, source)


def _unmet(costs: Costs, least: float, source: Path) -> InputError:
    return InputError(
        f"{source}: --budget {costs.budget} cannot be met: the least possible for this model is "
        f"{costs.budget.rounded_up(least)}, and as it is it costs {costs.budget.rounded_up(costs.whole)}."
    )
