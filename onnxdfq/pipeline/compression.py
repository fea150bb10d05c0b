"""The way from a float model to written files: read `run_compression` first.

What loads torch, onnxsim and ONNX Runtime is imported inside the functions, once paths and the file have been looked
at: a refusal must not wait for it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from onnxdfq.errors import InputError
from onnxdfq.images.dataset import shapes_of_data
from onnxdfq.methods import choose_method
from onnxdfq.methods.method import Distances, FloatModel, Measurement, Method, Need, Note, Run, Synthesis
from onnxdfq.model_file import Opening, main_input
from onnxdfq.pipeline.checks import calibration_of, check_method, check_paths, distilling_of, found_device, tuning_of
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Metrics, Result, TargetResult
from onnxdfq.recipe.bits import Bits
from onnxdfq.scratch import sweep_all
from onnxdfq.shown import some
from onnxdfq.training.outputs import class_scores, distilled_outputs
from onnxdfq.work.folder import work_folder
from passes.graph.attention import is_transformer
from passes.graph.batch_norm import read_batch_norms

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.images.images import Images
    from passes.lint.lint import Finding
    from passes.quantize.plan import QuantPlan

NONE_TRAINS = "none of adaround, brecq and distil runs here; name one with --tuning, or leave it out"


def run_compression(request: Request) -> Result:
    """Quantize a float model without data, and write and measure a file for each target. Raises DfqError."""
    with recorded(request) as (opening, run, record):
        from onnxdfq.model_file.through_proto import with_inferred_bodies
        from onnxdfq.model_file.writing import staging
        from onnxdfq.pipeline.bodies import observe_bodies
        from onnxdfq.pipeline.comparing import compare
        from onnxdfq.pipeline.dropping import check_drop
        from onnxdfq.pipeline.floats import tell_of_floats
        from onnxdfq.pipeline.handing import tell_what_next
        from onnxdfq.pipeline.images import choosing_images, make_images, own_shards
        from onnxdfq.pipeline.loading import load
        from onnxdfq.pipeline.planning import Planning, plan_all
        from onnxdfq.pipeline.rewriting import rewritten
        from onnxdfq.pipeline.steering import steered
        from onnxdfq.pipeline.trainers import with_trainers
        from onnxdfq.pipeline.verdict import judge
        from onnxdfq.pipeline.writing import stage_all, write
        from passes.lint.lint import lint

        model, original = load(request, opening, run)
        kept = _kept(model, request)
        request = steered(request, model, run)
        method, run = fitted(settled_method(request, model, run), model, run)
        tuning, distilling = tuning_of(request, method), distilling_of(request, method)
        run = with_trainers(run, request, model, unless=None if tuning or distilling else NONE_TRAINS)
        own, source, judging = make_images(model, method, request, run)
        images = None if source is None else source.fixed(run.image_count)
        streamed = None if distilling is None else own_shards(model, request)
        choosing = None
        if request.budgets.drop is not None:
            choosing, judging = choosing_images(model, judging, request, run)
            check_drop(original, choosing)
        # decide
        model = rewritten(model, method, source, request, run)
        observations = method.observe(model, source, request.targets, calibration_of(request), run)
        bodies = observe_bodies(model.graph, images, list(request.targets), calibration_of(request), run)
        planning = Planning(
            model=model,
            method=method,
            observations=observations,
            source=own,
            images=images,
            shards=None if streamed is None else streamed[0],
            settled={} if model.settled is None else model.settled(model.graph),
            tuning=tuning,
            distilling=distilling,
            run=run,
            budgets=request.budgets,
            original=original,
            choosing=choosing,
        )
        cases = plan_all(planning, request.targets, calibration_of(request))
        run.trainers.release()
        plans, request = {name: case.plan for name, case in cases.items()}, request.aimed(cases)
        # then edit, and prove what was written before it takes its place
        written = {
            t.name: write(model, plans[t.name], t, method, images, bodies, request, run) for t in request.targets
        }
        with staging(force=request.force) as staged:
            stage_all(request, model, plans, written, images, staged, run)
            compare(request, staged, original, images, judging, run)
            judge(request, model, plans, judging[-1] if judging else images, record.of, run)
            findings = {t.name: lint(with_inferred_bodies(written[t.name]), t) for t in request.targets}
            for output in request.outputs:
                if output in request.handed:
                    continue
                tell_of_floats(output, findings[output.target.name], run)
            tell_what_next(request.outputs, run)
    return _result(request, written, plans, method.name, images, findings, record, kept)


def run_weights_only(request: Request) -> Result:
    """Round weights alone, with a scale for every block, and write and measure a file for each target.

    Raises DfqError."""
    for target in request.targets:
        if not target.weight_blocks:
            raise InputError(
                f"The target {target.name} ({target.title}) has no weights with a scale for every block; choose "
                "another --target (ort), or leave --block out.",
                field="block",
            )
    with recorded(request) as (opening, run, record):
        from onnxdfq.pipeline.loading import load
        from onnxdfq.pipeline.planning import FLOAT_PLAN
        from onnxdfq.pipeline.trainers import with_trainers
        from onnxdfq.pipeline.weights_only import with_block_weights

        run.workers.release()
        model, original = load(request, opening, run)
        kept = _kept(model, request)
        with_trainers(run, request, model, unless=NONE_TRAINS)
        written, images, findings = with_block_weights(model, original, request, run)
    plans = dict.fromkeys(written, FLOAT_PLAN)
    return _result(request, written, plans, request.recipe.rounding, images, findings, record, kept)


def _kept(model: FloatModel, request: Request) -> ir.Model | None:
    """The float graph for the report, which what follows edits."""
    return model.graph.clone() if request.reported else None


def _result(
    request: Request,
    written: Mapping[str, ir.Model],
    plans: Mapping[str, QuantPlan],
    method: str,
    images: Images | None,
    findings: Mapping[str, tuple[Finding, ...]],
    record: Record,
    original: ir.Model | None,
) -> Result:
    targets = {
        output.target.name: TargetResult(
            model=written[output.target.name],
            plan=plans[output.target.name],
            path=output.path,
            metrics=record.of(output.target.name),
            findings=findings[output.target.name],
        )
        for output in request.outputs
    }
    first = next(iter(targets.values()))
    return Result(
        model=first.model,
        path=first.path,
        method=method,
        images=images,
        metrics={**record.of(None), **first.metrics},
        notes=tuple(record.notes),
        targets=targets,
        original=original,
        distances=record.distances,
    )


def run_synthesis(request: Request) -> Result:
    """Only the images, as a compression would make them. Raises DfqError."""
    with recorded(request) as (opening, run, record):
        from onnxdfq.model_file.writing import staging
        from onnxdfq.pipeline.card import card_of_run
        from onnxdfq.pipeline.images import make_images
        from onnxdfq.pipeline.loading import load
        from onnxdfq.pipeline.writing import stage_images

        model, _ = load(request, opening, run)
        method, run = fitted(settled_method(request, model, run), model, run)
        if not request.shard.is_whole:
            check_shard(method, run)
        _, source, _ = make_images(model, method, request, run)
        images = None if source is None else source.fixed(run.image_count)
        if images is not None and (card := card_of_run(model, images, run)) is not None:
            run.tell(Measurement(values={"card": asdict(card)}))
        with staging(force=request.force) as staged:
            stage_images(request, images, staged)
    return Result(
        model=model.graph,
        path=request.save_images,
        method=method.name,
        images=images,
        metrics=record.of(None),
        notes=tuple(record.notes),
    )


def check_shard(method: Method, run: Run) -> None:
    """Tells what shards of this method are. Raises InputError where it has none."""
    if not isinstance(method, Synthesis):
        raise InputError(
            f"--method {method.name} trains one generator for all images, which shards would each train again; leave "
            "--shard out, or name another --method (genie, zeroq, deepinversion).",
            field="shard",
        )
    if not method.has_independent_batches:
        text = (
            f"{method.name} has the images of each shard match the model's statistics by themselves: merged, they are "
            "others than one run makes."
        )
        run.tell(Note(text=text))


def settled_method(request: Request, model: FloatModel, run: Run) -> Method:
    """The method that was asked for, or what the model allows, which is told with its reason."""
    if request.method is not None:
        return request.method
    method, reason = choose_method(request.recipe, needs_met(request, model))
    check_method(request, method)
    if request.calibration is None:
        run.tell(Note(text=reason))
    return method


def fitted(method: Method, model: FloatModel, run: Run) -> tuple[Method, Run]:
    """The method and the run with as many steps and images as the effort comes to for this model, which is told."""
    if run.own_images or not method.makes_images(run.recipe):
        return method, run
    if getattr(method, "steps", None) and main_input(model.graph).image is not None:
        from onnxdfq.pipeline.floats import without_gradient

        if blocking := without_gradient(model.graph.graph):
            run.tell(
                Note(
                    text=f"No gradient passes {some(blocking, 3)}, which ONNX Runtime computes: images are "
                    "made by what does not lie behind."
                )
            )
    wanted = run.image_count, getattr(method, "steps", None)
    method, count = method.fitted(model, run.recipe)
    found = count, getattr(method, "steps", None)
    if found != wanted:
        steps = "" if found[1] is None else f" of {found[1]} steps"
        minutes, effort = run.recipe.minutes, run.recipe.effort
        bound = f"--effort {effort}" if minutes is None else f"--minutes {minutes:g}"
        advice = "--minutes, --images and --steps say otherwise."
        run.tell(Note(text=f"{bound} comes to {count} images{steps} for this model; {advice}"))
    # as if these counts had been asked for: who asks for them gets the same bytes
    settled = replace(run.recipe, images=count)
    if found[1] is not None and "steps" not in settled.settings.get(method.name, {}):
        settled = replace(settled, steps=found[1] or None, minutes=None)
    return method, replace(run, recipe=settled)


def needs_met(request: Request, model: FloatModel) -> frozenset[Need]:
    """What the model and the recipe offer to methods."""
    two = Bits.parse(request.recipe.bits).low is not None
    pictures = main_input(model.graph).image is not None
    found = {
        Need.BATCH_NORM: bool(read_batch_norms(model.graph)),
        Need.ATTENTION: pictures and is_transformer(model.graph.graph),
        Need.CLASSES: class_scores(distilled_outputs(model.graph.graph)) is not None,
        Need.TWO_WIDTHS: two,
    }
    return frozenset(need for need, met in found.items() if met)


@dataclass(kw_only=True)
class Record:
    """What stages told, kept for the result."""

    notes: list[str] = field(default_factory=list)
    measured: dict[str | None, Metrics] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)

    def take(self, told: Note | Measurement | Distances) -> None:
        """Note it down; the same sentence once."""
        if isinstance(told, Distances):
            self.distances = told.by_layer
        elif isinstance(told, Measurement):
            self.measured[told.target] = {**self.of(told.target), **told.values}  # type: ignore[typeddict-item]
        elif told.text not in self.notes:
            self.notes.append(told.text)

    def of(self, target: str | None) -> Metrics:
        """The numbers of one file, or those of the run."""
        return self.measured.get(target, {})


@contextmanager
def recorded(request: Request) -> Iterator[tuple[Opening, Run, Record]]:
    """The file as it is being opened, a run, and the record of what it tells, its seconds among it.

    Checks first what can be checked first: a file that is refused does not wait for torch.
    """
    started, record, workers = time.monotonic(), Record(), request.workers
    workers.wait_for_first()
    if workers.first:
        check_paths(request)
        sweep_all(request.folders)
    with Opening(
        request.source, input_shape=request.input_shape, data=_shapes_at_hand(request), fed=request.inputs
    ) as opening:
        opening.check()
        if request.method is not None:
            check_method(request, request.method)
        device = found_device(request.device)
        if workers.size > 1:
            agree(request, device)
            several = f"{workers.size} workers make the images together"
            rest = "; the first does all else alone." if request.train_slices == 1 else ", and train together."
            record.take(Note(text=several + rest))
        kept = request.work_dir if workers.first else None
        with work_folder(kept, request.source.name, lambda text: record.take(Note(text=text))) as work:
            run = Run(
                recipe=request.recipe,
                device=device,
                own_images=request.calibration is not None,
                zoo=request.zoo,
                work=work,
                workers=workers,
                shard=request.shard,
                progress=workers.watched(request.progress),
                tell=record.take,
            )
            yield opening, run, record
    run.tell(Measurement(values={"seconds": round(time.monotonic() - started, 1), "peak_memory": peak_memory()}))


def agree(request: Request, device: str) -> None:
    """All workers are about to do the same. Raises WorkerError: one of them, which is named, is not."""
    import torch

    from onnxdfq.methods.kept_images import identity_of_zoo
    from onnxdfq.model_file.untrusted import model_hash

    workers, recipe = request.workers, request.recipe
    if device == "cuda":
        workers.take_gpu()
    zoo = "".join(identity_of_zoo(request.zoo))
    fed = repr(dict(request.inputs)), repr(dict(request.input_shape))
    rest = (recipe.to_toml(), repr(request.method), zoo, *fed, str(request.train_slices))
    workers.agree(
        {
            "onnxdfq": version("onnxdfq"),
            "torch": str(torch.__version__),
            "device": device,
            "threads (OMP_NUM_THREADS)": str(torch.get_num_threads()),
            "the model of SHA-256": model_hash(request.source)[:16],
            "the seed": str(recipe.seed),
            "the shard": str(request.shard),
            "a recipe of SHA-256": hashlib.sha256("\n".join(rest).encode()).hexdigest()[:16],
        }
    )


def peak_memory() -> int | None:
    """Bytes that this process has held at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _shapes_at_hand(request: Request) -> dict[str, tuple[int, ...]]:
    """Shapes of the user's arrays, which sizes that the file leaves open follow from."""
    found: dict[str, tuple[int, ...]] = {}
    for source in (request.evaluation, request.calibration):
        found |= {} if source is None else shapes_of_data(source)
    return found
