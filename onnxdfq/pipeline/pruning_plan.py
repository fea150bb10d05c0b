"""What a pruning takes out: read `decided` first; and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.methods.method import Measurement, Note, Run
from onnxdfq.shown import some
from passes.prune.channels import ChannelChoice
from passes.prune.importance import Covariances
from passes.prune.plan import CannotPrune, ChannelPlan, ZeroPlan
from passes.prune.zero_weights import smallest_weights, two_of_four

if TYPE_CHECKING:
    from onnxdfq.evaluation import Session
    from onnxdfq.images.images import Images
    from onnxdfq.pipeline.pruning import PruneRequest

NAMED = 3  # layers, or reasons, that a note names


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """By what channels are judged: images, and where a budget speaks of time, the session of the file. run: of both."""

    images: Images
    session: Session
    run: Run


def check_plan(graph: ir.Model, request: PruneRequest, session: Session) -> None:
    """Raises InputError as `decided` does, before there is any image."""
    budget = request.pruning.budget
    if budget is None:
        decided(graph, request)
        return
    from onnxdfq.pipeline.pruning_budget import check_budget

    check_budget(graph, ChannelChoice(graph, multiple=request.pruning.multiple), budget, session, request.source)


def decided(graph: ir.Model, request: PruneRequest, judged: Judged | None = None) -> ChannelPlan | ZeroPlan:
    """What goes.

    Args:
        graph: canonical. It is only read.
        request: what is asked for.
        judged: by what channels are judged, where there are images; without it BatchNormalizations tell what is.

    Raises:
        InputError: nothing can go, a layer would be left empty, or a budget cannot be met.
    """
    pruning = request.pruning
    try:
        if pruning.sparsity is None and pruning.pattern is None:
            return _channels(graph, request, judged)
        zeros = two_of_four(graph) if pruning.sparsity is None else smallest_weights(graph, sparsity=pruning.sparsity)
    except CannotPrune as error:
        raise InputError(f"{request.source}: {error}") from error
    if not zeros.masks:
        why = next(iter(zeros.skipped.items()), None)
        reason = "it has no layer with constant weights" if why is None else f"{why[0]}: {why[1]}"
        raise InputError(f"{request.source}: no layer can be pruned by {pruning}; {reason}.")
    return zeros


def _channels(graph: ir.Model, request: PruneRequest, judged: Judged | None) -> ChannelPlan:
    pruning = request.pruning
    choice = ChannelChoice(
        graph, multiple=pruning.multiple, covariances=_covariances(graph, judged) if pruning.is_fitted else None
    )
    if pruning.channels is not None:
        plan = choice.plan([pruning.channels] * len(choice.groups))
    else:
        assert pruning.budget is not None and judged is not None
        from onnxdfq.pipeline.pruning_budget import ratios_within

        ratios, run, source = None, judged.run, request.source
        if run.trainers.first:  # of workers that train together one chooses for all: times that they measure differ
            ratios = ratios_within(graph, choice, pruning.budget, judged.session, judged.images, source, run)
        plan = choice.plan(run.trainers.share(ratios))
    if not plan.removed:
        reason = _reasons(plan) or f"each layer keeps a multiple of {pruning.multiple} channels, the nearest to that"
        raise InputError(f"{request.source}: no channel goes by {pruning}: {reason}.")
    return plan


def _covariances(graph: ir.Model, judged: Judged | None) -> Covariances | None:
    if judged is None:
        return None
    from onnxdfq.pruning.covariances import input_covariances

    run = judged.run
    return input_covariances(
        graph, judged.images.samples, device=run.device, progress=run.progress("looking at what layers read")
    )


def tell_of_plan(plan: ChannelPlan | ZeroPlan, run: Run) -> None:
    """What stays that was asked to go, with the reason; and how much goes."""
    if isinstance(plan, ZeroPlan):
        if plan.skipped:
            name, why_not = next(iter(plan.skipped.items()))
            more = f", and {len(plan.skipped) - 1} others" if len(plan.skipped) > 1 else ""
            run.tell(Note(text=f"{len(plan.skipped)} layers stay as they are: {name} ({why_not}){more}."))
        return
    if told := _reasons(plan):
        count = sum(len(layers) for layers, _ in _kept(plan))
        run.tell(Note(text=f"{count} layers keep all their channels: {told}. The others are pruned."))
    total = sum(group.channels for group in plan.groups)
    run.tell(Measurement(values={"layer_channels": total, "layer_channels_removed": plan.removed}))


def _kept(plan: ChannelPlan) -> list[tuple[tuple[str, ...], str]]:
    """Groups of layers that keep all, but for the last ones, which have to, and why."""
    return [
        (group.layers, group.why)
        for group in plan.groups
        if group.why is not None
        and group.kept == group.channels
        and not group.why.startswith("its channels are those of the output")
    ]


def _reasons(plan: ChannelPlan) -> str:
    reasons = list(dict.fromkeys(f"{some(layers, NAMED)} ({why})" for layers, why in _kept(plan)))
    more = f"; and {len(reasons) - NAMED} others" if len(reasons) > NAMED else ""
    return "; ".join(reasons[:NAMED]) + more
