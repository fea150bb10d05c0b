"""All numbers that quantization writes, decided for each target before any file is touched.

keep float → widths → decide → choose by outputs → refine: pure functions, each from a frozen `Case` to the next. What
several targets have in common (equal plans, activations alike) is worked out once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from onnxdfq.budget import bit_choices
from onnxdfq.budget.ladder import Choice
from onnxdfq.calibration.by_outputs import thresholds_by_outputs
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session
from onnxdfq.images.images import Images
from onnxdfq.images.shards import Shards
from onnxdfq.images.source import ImageSource
from onnxdfq.methods.effort import limit_of, visits_within
from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run
from onnxdfq.pipeline.dropping import Dropping
from onnxdfq.pipeline.keeping import kept_for_ranges, tell_of_unseen
from onnxdfq.pipeline.trainers import agree_to_train
from onnxdfq.recipe.budget import MOST, Budget, Budgets
from onnxdfq.training.distilling import Distilling
from onnxdfq.training.outputs import class_scores, distilled_outputs
from onnxdfq.tuning import Tuning
from onnxdfq.work.checkpoint import Checkpoint, Findings
from passes.dfmpc.plan import QuantizedWeight
from passes.graph.work import work_per_sample
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import find_quant_points
from passes.target.kept_float import NOTHING_KEPT
from passes.target.target import Target

Found = TypeVar("Found")
FLOAT_PLAN = QuantPlan(activations={}, weights={})


@dataclass(frozen=True, kw_only=True, eq=False)
class Planning:
    """What all targets decide by.

    model: folded. method: has the last word on each plan. source: where the method's images come from, or the user's
    own. images: those that were made. Both are None where no image is looked at. shards: all samples of the user's
    own, where they lie in several files: what trains reads these, and no other stage does. settled: by initializer,
    weights that are decided already. tuning: None where nothing is tuned. distilling: None where the whole graph is not
    trained. original, choosing: the float network, and inputs that a budget of answers is held by, where there is
    one.
    """

    model: FloatModel
    method: Method
    observations: Observations
    source: ImageSource | None
    images: Images | None
    shards: Shards | None
    settled: Mapping[str, QuantizedWeight]
    tuning: Tuning | None
    distilling: Distilling | None
    run: Run
    budgets: Budgets = field(default_factory=Budgets)
    original: Session | None = None
    choosing: Images | None = None
    memo: dict[tuple[object, ...], object] = field(default_factory=dict)

    def once(self, key: tuple[object, ...], make: Callable[[], Found]) -> Found:
        """`make()`, or what it gave for an equal key before."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One target on its way to a plan."""

    target: Target
    calibration: Calibration
    plan: QuantPlan = FLOAT_PLAN


def plan_all(planning: Planning, targets: Sequence[Target], calibration: Calibration) -> dict[str, Case]:
    """Target name → its plan, and the target with what a budget keeps float.

    Raises:
        InputError: a target does not take what is asked for, or no widths are within the budget.
    """
    if planning.images is None and planning.settled:
        settled = QuantPlan(
            activations={},
            weights={name: weight.quant for name, weight in planning.settled.items()},
            integers={name: weight.integers for name, weight in planning.settled.items()},
        )
        return {target.name: Case(target=target, calibration=calibration, plan=settled) for target in targets}
    cases = [Case(target=target, calibration=calibration) for target in targets if target.format != "float"]
    for stage in (kept, widths, decided, chosen_by_outputs):
        cases = [stage(case, planning) for case in cases]
    quantized = [case.target for case in cases if case.plan.activations]
    tell_of_unseen(planning.model.graph, planning.observations, quantized, planning.run)
    _tell_of_tails(cases, planning)
    found = {case.target.name: refined(case, planning) for case in cases}
    for case in found.values():
        if (name := case.plan.not_finite()) is not None:
            raise InputError(
                f"A scale or bias of {name!r} is no number that float32 holds: the network computes with numbers that "
                "are too large or too small to be quantized; check its weights."
            )
    floats = [target for target in targets if target.format == "float"]
    return found | {target.name: Case(target=target, calibration=calibration) for target in floats}


def kept(case: Case, planning: Planning) -> Case:
    """What stays float for its ranges."""
    model, observations, run = planning.model.graph, planning.observations, planning.run
    return replace(case, target=kept_for_ranges(model, observations, case.calibration, case.target, run))


def widths(case: Case, planning: Planning) -> Case:
    """Bits of each layer, and which stay float, where budgets are to be kept."""
    case = _within_cost(case, planning)
    budgets, original, images, run = planning.budgets, planning.original, planning.choosing, planning.run
    if budgets.drop is None or original is None or images is None:
        return case
    dropping = Dropping(
        model=planning.model,
        observations=planning.observations,
        original=original,
        images=images,
        budgets=budgets,
        calibration=case.calibration,
        target=case.target,
        run=run,
        lost=Findings(_checkpoint("answers", _decides(case, budgets), case, images, planning)),
    )
    fewer = None
    if budgets.cost is None and case.target.packs_weights and planning.images is not None:
        every = Budget(kind="size", limit=MOST)
        fewer = bit_choices(**_measured_by(case, planning, planning.images, every))
    calibration, target = dropping.applied(dropping.cheapest(Choice(bits=case.calibration.layer_bits), fewer))
    return replace(case, calibration=calibration, target=target)


def _measured_by(case: Case, planning: Planning, images: Images, budget: Budget) -> dict[str, Any]:
    return {
        "checkpoint": _checkpoint("sensitivity", _decides(case, budget.kind), case, images, planning),
        "budget": budget,
        "model": planning.model.graph,
        "pixels": images.samples,
        "observations": planning.observations,
        "calibration": case.calibration,
        "target": case.target,
        "device": planning.run.device,
        "progress": planning.run.progress("measuring layers"),
    }


def _within_cost(case: Case, planning: Planning) -> Case:
    run, images, cost = planning.run, planning.images, planning.budgets.cost
    if cost is None or images is None:
        return case
    chosen = bit_choices(**_measured_by(case, planning, images, cost)).within(cost.limit)
    values = {"weight_bytes": round(chosen.size), "bit_operations": chosen.bops}
    run.tell(Measurement(values=values, target=case.target.name))
    containers = {bits: case.target.weight_container(bits) for bits in set(chosen.weight_bits.values())}
    if wider := sorted({name for bits, name in containers.items() if name != f"int{bits}"}):
        run.tell(
            Note(
                text=f"--budget counts weights at their bits; the target {case.target.name} keeps some of them in "
                f"{' and '.join(wider)}, so its file is larger."
            )
        )
    return replace(case, calibration=replace(case.calibration, layer_bits=chosen.layers))


def decided(case: Case, planning: Planning) -> Case:
    """Thresholds by squared error, and biases."""
    return _decided(case, planning, {})


def chosen_by_outputs(case: Case, planning: Planning) -> Case:
    """Thresholds of activations by what they cost the network's outputs."""
    images, recipe = planning.images, planning.run.recipe
    if images is None or recipe.clipping != "mse":
        return case
    zero_points = case.calibration.takes_zero_points(case.target)

    def choose() -> dict[str, dict[str, Any]]:
        chosen = thresholds_by_outputs(
            planning.model.graph,
            case.plan,
            images.samples,
            scheme=recipe.scales,
            zero_points=zero_points,
            device=planning.run.device,
            progress=planning.run.progress("choosing thresholds"),
        )
        return {name: asdict(quant) | {"threshold": float(quant.threshold)} for name, quant in chosen.items()}

    table = planning.once(
        ("thresholds", zero_points, case.plan.activation_fingerprint),
        lambda: Findings(_checkpoint("thresholds", zero_points, case, images, planning))("all", choose, last=True),
    )
    found = {name: _quant(**entry) for name, entry in table.items()}
    return _decided(case, planning, found) if found else case


def _quant(*, threshold: float, clip: Sequence[int] | None, **rest: Any) -> TensorQuant:
    """From what JSON says of one whole tensor's quantization."""
    return TensorQuant(threshold=np.float64(threshold), clip=None if clip is None else (clip[0], clip[1]), **rest)


def refined(case: Case, planning: Planning) -> Case:
    """Roundings, scales and biases tuned, and what the method makes of the plan then."""
    case = _distilled(_tuned(case, planning), planning)
    plan = planning.once(
        ("refined", case.plan.fingerprint, case.target.pair_limit, case.target.pair_order),
        lambda: planning.method.refine(planning.model, case.plan, case.target, planning.source, planning.run),
    )
    return replace(case, plan=plan)


def _tuned(case: Case, planning: Planning) -> Case:
    tuning, images, run = planning.tuning, planning.images, planning.run
    if tuning is None or images is None:
        return case
    agree_to_train(run, tuning, case.plan.fingerprint)
    plan, parts = planning.once(
        ("tuned", case.plan.fingerprint, case.target.pair_limit, case.target.pair_order),
        lambda: tuning.tune(
            planning.model.graph,
            case.plan,
            case.target,
            images.samples,
            reference=planning.model.teacher,
            seed=run.recipe.seed,
            device=run.device,
            progress=run.progress("tuning"),
            checkpoint=_checkpoint("tuning", tuning, case, images, planning),
            workers=run.trainers,
        ),
    )
    run.tell(Measurement(values={"blocks_tuned": len(parts)}, target=case.target.name))
    for reason in dict.fromkeys(part.block.fallback for part in parts if part.block.fallback):
        run.tell(Note(text=reason))
    uses = find_quant_points(planning.model.graph, case.target).weights
    scales = {use.initializer for use in uses if use.scales}
    if untuned := sorted(case.plan.weights.keys() - plan.integers.keys() - scales):
        run.tell(
            Note(
                text=f"{len(untuned)} weights lie in no block with one way in and one way out that gradients pass, and "
                f"keep nearest rounding: {', '.join(untuned[:3])}{', ...' if len(untuned) > 3 else ''}."
            )
        )
    return replace(case, plan=plan)


def _distilled(case: Case, planning: Planning) -> Case:
    distilling, images, run = planning.distilling, planning.images, planning.run
    if distilling is None or images is None:
        return case
    visits = visits_within(work_per_sample(planning.model.graph.graph), limit_of(run.recipe.effort, run.recipe.minutes))
    agree_to_train(run, distilling, case.plan.fingerprint, "" if planning.shards is None else planning.shards.digest())
    if (fewer := distilling.within(visits)) != distilling:
        distilling = fewer
        run.tell(Note(text=f"Distillation takes {fewer.loop.steps} steps for this model; --minutes says otherwise."))
    plan, training = planning.once(
        ("distilled", case.plan.fingerprint, case.target.pair_limit, case.target.pair_order),
        lambda: distilling.train(
            planning.model.graph,
            case.plan,
            case.target,
            planning.shards or images.samples,
            reference=planning.model.teacher,
            learn_scales=run.recipe.scales == "free",
            seed=run.recipe.seed,
            device=run.device,
            progress=run.progress("distilling"),
            checkpoint=_checkpoint("distilling", distilling, case, images, planning),
            workers=run.trainers,
        ),
    )
    run.tell(Measurement(values={"loss_curve": training.rows()}, target=case.target.name))
    if training.stopped is not None:
        run.tell(Note(text=training.stopped))
    if class_scores(distilled_outputs(planning.model.graph.graph)) is None:
        run.tell(Note(text="No output scores classes: distillation goes by the squared error of the outputs."))
    return replace(case, plan=plan)


def _decides(case: Case, budget: object) -> tuple[object, ...]:
    """What plans follow from that are decided to be measured."""
    kept = case.target.kept_float
    target = replace(case.target, kept_float=NOTHING_KEPT)
    return budget, case.calibration, target, sorted(kept.nodes), sorted(kept.values)


def _checkpoint(stage: str, how: object, case: Case, images: Images, planning: Planning) -> Checkpoint | None:
    """In the work folder, under a key of all that a stage follows from. how: its settings."""
    run, shards = planning.run, planning.shards
    settings = (case.plan.fingerprint, planning.model.digest, run.recipe.to_toml(), repr(how))
    limits = repr((case.target.pair_limit, case.target.pair_order))
    data = images.identity() if shards is None else shards.identity()
    if images is not planning.images and planning.images is not None:
        data += planning.images.identity()
    return run.checkpoint(stage, *settings, limits, *data)


def _decided(case: Case, planning: Planning, chosen: Mapping[str, TensorQuant]) -> Case:
    """chosen: quantizations of activations, by value name, in place of those that squared error decides."""
    settled = {name: weight.quant for name, weight in planning.settled.items()}
    plan = case.calibration.decide(
        planning.model.graph, planning.observations, case.target, overrides={**settled, **chosen}
    )
    integers = {
        name: weight.integers for name, weight in planning.settled.items() if plan.weights[name] is weight.quant
    }
    return replace(case, plan=replace(plan, integers={**integers, **plan.integers}))


def _tell_of_tails(cases: Sequence[Case], planning: Planning) -> None:
    """How many activations would gain a bit by --shift-negative."""
    shiftable = [
        case.calibration.shiftable(planning.model.graph, planning.observations, case.plan)
        for case in cases
        if not case.calibration.shift_negative and case.target.unsigned_activations != "none"
    ]
    if count := max(shiftable, default=0):
        what = "activation has" if count == 1 else "activations have"
        text = f"{count} {what} a small negative tail, which costs a bit; --shift-negative gives it back."
        planning.run.tell(Note(text=text))
