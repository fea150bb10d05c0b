"""From a float model to a pruned one: read `run_pruning` first. It stays a float model, for `compress` to take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.pipeline.compression import fitted, recorded, settled_method
from onnxdfq.pipeline.distillation import repair
from onnxdfq.pipeline.pruning_plan import NAMED, Judged, check_plan, decided, tell_of_plan
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Result
from onnxdfq.pipeline.trainers import with_trainers
from onnxdfq.recipe.pruning import Pruning
from onnxdfq.shown import some
from passes.graph.editing import drop_unused_initializers
from passes.graph.work import work_per_sample
from passes.prune.plan import ChannelPlan, ZeroPlan
from passes.prune.remove_channels import RemoveChannels
from passes.prune.zero_weights import ZeroWeights, prunable_layers
from passes.write.provenance import WriteProvenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxdfq.evaluation import Session
    from onnxdfq.images.images import Images
    from onnxdfq.model_file.writing import Staged


@dataclass(frozen=True, kw_only=True)
class PruneRequest(Request):
    """A pruning. output: the file to write."""

    pruning: Pruning
    output: Path
    wants_images_for = "--repair on images"

    @property
    def models(self) -> tuple[Path, ...]:
        """The pruned one."""
        return (self.output,)

    @property
    def train_slices(self) -> int:
        """Those of the repair by distillation."""
        return self.pruning.distillation.train_slices


def run_pruning(request: PruneRequest) -> Result:
    """Prune a float model without data, repair it, and write and measure the file. Raises DfqError."""
    with recorded(request) as (opening, run, record):
        from onnxdfq.model_file.saving import stage_model
        from onnxdfq.model_file.writing import staging
        from onnxdfq.pipeline.images import judging_images, make_images
        from onnxdfq.pipeline.loading import load

        model, session = load(request, opening, run)
        check_plan(model.graph, request, session)
        method: Method | None = None
        images: Images | None = None
        if request.pruning.looks_at_images:
            method, run = fitted(settled_method(request, model, run), model, run)
            run = with_trainers(run, request, model, unless=None)
            _, source, judging = make_images(model, method, request, run)
            images = None if source is None else source.fixed(run.image_count)
        else:
            run.workers.release()
            judging = judging_images(model, None, request, run)
        judged = None if images is None else Judged(images=images, session=session, run=run)
        plan = decided(model.graph, request, judged)
        tell_of_plan(plan, run)
        before = model.graph.clone()
        carry_out(model.graph, plan, request, run)
        if images is not None and request.pruning.is_fitted:
            _fit(model, before, plan, images, request, run)
        if images is not None and "distillation" in request.pruning.repair:
            repair(model, before, images, request, request.pruning.distillation, run)
        run.trainers.release()
        _measure_sizes(request, before, model.graph, run)
        _write_origin(model, method, images, request, run)
        with staging(force=request.force) as staged:
            stage_model(model.graph, request.output, staged)
            run.tell(Measurement(values={"bytes": bytes_of(staged.where(request.output))}))
            _compare(request, staged, session, model.graph, images, judging, run)
    return Result(
        model=model.graph,
        path=request.output,
        method="none" if method is None else method.name,
        images=images,
        metrics=record.of(None),
        notes=tuple(record.notes),
    )


def carry_out(graph: ir.Model, plan: ChannelPlan | ZeroPlan, request: PruneRequest, run: Run) -> None:
    """The plan, and the repair by moments where that is asked for. The graph is edited in place."""
    if "moments" in request.pruning.repair:
        from onnxdfq.pruning.moments import give_back, lost_moments

        lost = lost_moments(graph, plan)
        give_back(graph, lost)
        if lost.unknown:
            run.tell(
                Note(
                    text=f"{len(lost.unknown)} layers are not repaired by moments, because no BatchNormalization tells "
                    f"those of what they read: {some(lost.unknown, NAMED)}."
                )
            )
    if isinstance(plan, ChannelPlan):
        RemoveChannels(plan)(graph)
    else:
        ZeroWeights(plan)(graph)
    drop_unused_initializers(graph.graph)


def _fit(
    model: FloatModel, before: ir.Model, plan: ChannelPlan | ZeroPlan, images: Images, request: PruneRequest, run: Run
) -> None:
    from onnxdfq.pruning.least_squares import fit_layers
    from onnxdfq.training.data import trains

    if "distillation" in request.pruning.repair and len(images) > 1:
        # what decides which state is kept has to be as new to the first as to the last
        images = images.taken(trains(len(images)).numpy())
    left = fit_layers(
        model.graph, before, plan, images.samples, device=run.device, progress=run.progress("fitting layers")
    )
    if left:
        run.tell(
            Note(
                text=f"{len(left)} layers are not fitted, for least squares does not know their operator: "
                f"{some(left, NAMED)}."
            )
        )


def _measure_sizes(request: PruneRequest, before: ir.Model, after: ir.Model, run: Run) -> None:
    zeros = sum(int((weight == 0).sum()) for _, weight in prunable_layers(after))
    weights = [sum(weight.size for _, weight in prunable_layers(graph)) for graph in (before, after)]
    values = {
        "bytes_float": bytes_of(request.source),
        "weights_float": weights[0],
        "weights": weights[1] - zeros,
        "macs_float": work_per_sample(before.graph).macs,
        "macs": work_per_sample(after.graph).macs,
    }
    run.tell(Measurement(values=values))


def _write_origin(
    model: FloatModel, method: Method | None, images: Images | None, request: PruneRequest, run: Run
) -> None:
    """The boundary of the file, and what made it."""
    from onnxdfq.model_file.declared import restore_shapes

    restore_shapes(model.graph, dynamic_batch=False, static=False)
    entries = {
        "version": version("onnxdfq"),
        "pruned": str(request.pruning),
        "repair": ",".join(request.pruning.repair) or "none",
        "source": model.digest[:16],
    }
    if method is not None and images is not None:
        entries |= {"method": images.method, "images": str(len(images)), "seed": str(run.recipe.seed)}
    if model.normalization is not None:
        entries["norm"] = str(model.normalization)
    WriteProvenance(entries)(model.graph)


def _compare(
    request: PruneRequest,
    staged: Staged,
    original: Session,
    graph: ir.Model,
    images: Images | None,
    judging: Sequence[Images],
    run: Run,
) -> None:
    """Against the file itself."""
    from onnxdfq.evaluation import Session
    from onnxdfq.pipeline.comparing import compare_floats

    session = Session(staged.where(request.output), called=request.output)
    if request.pruning.budget is not None and request.pruning.budget.kind == "latency":
        from onnxdfq.pipeline.pruning_budget import verify_latency

        verify_latency(request.pruning.budget, original, session, graph, run)
    compare_floats(session, original, images, judging, "prune less, or leave --repair out", run)
