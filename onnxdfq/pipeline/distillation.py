"""From a float student to a trained one: read `run_distillation` first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdfq.errors import InputError
from onnxdfq.limits import IMAGES
from onnxdfq.methods.effort import images_in_memory, limit_of, visits_within
from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run, Synthesis
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.pipeline.compression import fitted, recorded, settled_method
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Result
from onnxdfq.pipeline.trainers import agree_to_train, digest_of, with_trainers
from onnxdfq.recipe.distillation import RATES, REPAIR_RATES, KnowledgeDistillation
from onnxdfq.shown import some
from passes.graph.work import work_per_sample
from passes.write.provenance import read_provenance

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxdfq.evaluation import Session
    from onnxdfq.images.images import Images
    from onnxdfq.images.samples import Samples
    from onnxdfq.images.shards import Shards
    from onnxdfq.images.source import ImageSource
    from onnxdfq.model_file.writing import Staged
    from onnxdfq.pipeline.student_file import StudentFile
    from onnxdfq.training.loop import Training
    from onnxdfq.training.matching import Matching
    from onnxdfq.training.teaching import Teaching

STEPS = {"fast": 1000, "standard": 5000, "paper": 44_000}
"""Steps by effort, the last of them MixMix's."""
LEAST_STEPS = 100
NAMED = 3  # parameters that a note names


@dataclass(frozen=True, kw_only=True)
class DistillRequest(Request):
    """A distillation; `source` is the teacher. student: the file that learns. output: the file to write."""

    student: Path
    distillation: KnowledgeDistillation
    output: Path
    wants_images_for = "distillation"

    @property
    def models(self) -> tuple[Path, ...]:
        """The trained one."""
        return (self.output,)

    @property
    def read(self) -> Mapping[str, Path]:
        """The student."""
        return {"the student": self.student}

    @property
    def train_slices(self) -> int:
        """Those of the distillation."""
        return self.distillation.train_slices


def run_distillation(request: DistillRequest) -> Result:
    """Train a student against a float model without data, and write and measure the file. Raises DfqError."""
    with recorded(request) as (opening, run, record):
        from onnxdfq.model_file.saving import stage_model
        from onnxdfq.model_file.writing import staging
        from onnxdfq.pipeline.images import make_images, own_shards
        from onnxdfq.pipeline.loading import load
        from onnxdfq.pipeline.student_file import open_student
        from onnxdfq.training.matching import match

        model, session = load(request, opening, run)
        student = open_student(request.student, input_shape=request.input_shape)
        matching = match(model.graph, student.model, features=request.distillation.features > 0)
        _look_at(model, student, run)
        method, run = fitted(settled_method(request, model, run), model, _with_all_images(request, model, run))
        run = with_trainers(run, request, model, unless=_never_cut(request, method))
        own, source, judging = make_images(model, method, request, run)
        assert own is not None and source is not None  # a method without images was refused
        images = source.fixed(run.image_count)
        shards = own_shards(model, request)
        teaching = teaching_of(request.distillation, model, run, source=own, pruned=student.pruned)
        agree_to_train(run, teaching, student.digest, "" if shards is None else shards[0].digest())
        training = _taught(teaching, model, student, matching, own, shards[0] if shards else images, run)
        run.trainers.release()
        tell_of(training, run)
        written = student.trained(_origin(model, student, method, images, teaching, run))
        with staging(force=request.force) as staged:
            stage_model(written, request.output, staged, inferred=False)
            sizes = {"bytes_float": bytes_of(request.source), "bytes": bytes_of(staged.where(request.output))}
            run.tell(Measurement(values=sizes))
            _compare(request, staged, session, images, judging, run)
    return Result(
        model=written,
        path=request.output,
        method=method.name,
        images=images,
        metrics=record.of(None),
        notes=tuple(record.notes),
    )


def repair(
    pruned: FloatModel, original: ir.Model, images: Images, request: Request, asked: KnowledgeDistillation, run: Run
) -> None:
    """Train a pruned graph, in place, towards what it was before; its zeros stay.

    Workers that stay train together.

    Args:
        pruned: What trains.
        original: The same network before anything was taken from it.
        images: What it trains on, unless the user's own lie in several files.
        request: Names these.
        asked: Of the training.
        run: Told of the losses.

    Raises:
        WorkerError: A worker, which is named, comes to other weights before the training.
    """
    from onnxdfq.pipeline.images import own_shards
    from onnxdfq.training.matching import match

    shards = own_shards(pruned, request)
    data = shards[0] if shards else images
    teaching, start = teaching_of(asked, pruned, run, pruned=True), _digest(pruned.graph)
    agree_to_train(run, teaching, start, "" if shards is None else shards[0].digest())
    settings = (pruned.digest, start, run.recipe.to_toml(), repr(teaching))
    training = teaching.train(
        original,
        pruned.graph,
        match(original, pruned.graph),
        _samples(data),
        names=frozenset(pruned.graph.graph.initializers),
        seed=run.recipe.seed,
        device=run.device,
        progress=run.progress("distilling"),
        checkpoint=run.checkpoint("repair", *settings, *data.identity()),
        workers=run.trainers,
    )
    tell_of(training, run)


def _digest(graph: ir.Model) -> str:
    """Of its floating-point initializers."""
    tensors = {name: value.const_value for name, value in sorted(graph.graph.initializers.items())}
    floats = {name: one for name, one in tensors.items() if one is not None and one.dtype.is_floating_point()}
    return digest_of({name: one.numpy() for name, one in floats.items()})


def teaching_of(
    asked: KnowledgeDistillation, model: FloatModel, run: Run, *, source: ImageSource | None = None, pruned: bool
) -> Teaching:
    """The training that settings come to for this model; fewer steps for a large one are told.

    Args:
        asked: What was asked for.
        model: The teacher.
        run: Its effort.
        source: Of the images.
        pruned: Whether the student was trained before, and pruned.
    """
    from onnxdfq.generators.source import GeneratedImages
    from onnxdfq.training.distillation import Distillation
    from onnxdfq.training.loop import Loop
    from onnxdfq.training.rates import FloatRates
    from onnxdfq.training.teaching import Teaching

    steps = asked.train_steps or STEPS[run.recipe.effort]
    visits = visits_within(work_per_sample(model.graph.graph), limit_of(run.recipe.effort, run.recipe.minutes))
    if asked.train_steps is None and (fewer := max(int(visits / asked.train_batch), LEAST_STEPS)) < steps:
        steps = fewer
        run.tell(
            Note(text=f"Distillation takes {steps} steps for this model; --train-steps and --minutes say otherwise.")
        )
    optimizer = asked.optimizer or ("adam" if isinstance(source, GeneratedImages) else "sgd")
    rate = REPAIR_RATES[asked.statistics] if pruned and optimizer == "sgd" else RATES[optimizer]
    decay = 5e-4 if optimizer == "sgd" else 0.0
    return Teaching(
        loop=Loop(
            steps=steps,
            batch_size=asked.train_batch,
            optimizer=optimizer,
            warm_up=0.05,
            slices=asked.train_slices,
        ),
        distillation=Distillation(temperature=asked.temperature, features=asked.features),
        rates=FloatRates(
            rate=rate if asked.rate is None else asked.rate,
            weight_decay=decay if asked.weight_decay is None else asked.weight_decay,
        ),
        statistics=asked.statistics,
        momentum=asked.momentum,
        augmented=asked.augmented,
    )


def tell_of(training: Training, run: Run) -> None:
    """Its losses, and why it ended early."""
    run.tell(Measurement(values={"loss_curve": training.rows()}))
    if training.stopped is not None:
        run.tell(Note(text=training.stopped))
    if not training.best.step:
        run.tell(Note(text="No step made the student better on the images that are held back; it stays as it was."))


def _taught(
    teaching: Teaching,
    model: FloatModel,
    student: StudentFile,
    matching: Matching,
    own: ImageSource,
    images: Images | Shards,
    run: Run,
) -> Training:
    from onnxdfq.generators.source import GeneratedImages
    from onnxdfq.generators.teaching import teach_on_generator

    settings = (model.digest, student.digest, run.recipe.to_toml(), repr(teaching))
    checkpoint = run.checkpoint("distill", *settings, *images.identity())
    progress = run.progress("distilling")
    if isinstance(own, GeneratedImages):
        return teach_on_generator(
            teaching,
            model.graph,
            student.model,
            matching,
            own.task,
            names=student.names,
            generator_rate=own.rate,
            seed=run.recipe.seed,
            progress=progress,
            checkpoint=checkpoint,
        )
    return teaching.train(
        model.graph,
        student.model,
        matching,
        _samples(images),
        names=student.names,
        seed=run.recipe.seed,
        device=run.device,
        progress=progress,
        checkpoint=checkpoint,
        workers=run.trainers,
    )


def _samples(images: Images | Shards) -> Samples | Shards:
    from onnxdfq.images.images import Images

    return images.samples if isinstance(images, Images) else images


def _never_cut(request: Request, method: Method) -> str | None:
    if request.calibration is not None or isinstance(method, Synthesis):
        return None
    return (
        f"{method.name} trains a generator beside the student, whose batches hang together; leave it out, or name "
        "another --method (genie, zeroq, deepinversion)"
    )


def _look_at(model: FloatModel, student: StudentFile, run: Run) -> None:
    """What does not fit, and what will not change, is told."""
    own = read_provenance(student.file).get("norm")
    if own is not None and model.normalization is not None and own != str(model.normalization):
        raise InputError(
            f"The student takes images normalised by {own} and the teacher by {model.normalization}; they have to see "
            "the same images."
        )
    if student.fixed:
        run.tell(
            Note(
                text=f"{len(student.fixed)} parameters stay as they are, for the student's file computes them from "
                f"others: {some(student.fixed, NAMED)}."
            )
        )


def _with_all_images(request: Request, model: FloatModel, run: Run) -> Run:
    """Of the user's own images all train, where no number is asked for; of several files those in memory only judge."""
    from onnxdfq.images.shards import shard_files

    if request.calibration is None or run.recipe.images is not None or shard_files(request.calibration):
        return run
    return replace(run, recipe=replace(run.recipe, images=min(int(IMAGES.most), images_in_memory(model.graph))))


def _origin(
    model: FloatModel, student: StudentFile, method: Method, images: Images, teaching: Teaching, run: Run
) -> dict[str, str]:
    entries = {
        "version": version("onnxdfq"),
        "teacher": model.digest[:16],
        "source": student.digest[:16],
        "method": images.method,
        "images": str(len(images)),
        "steps": str(teaching.loop.steps),
        "seed": str(run.recipe.seed),
    }
    return entries if model.normalization is None else {**entries, "norm": str(model.normalization)}


def _compare(
    request: DistillRequest,
    staged: Staged,
    teacher: Session,
    images: Images,
    judging: Sequence[Images],
    run: Run,
) -> None:
    """The file itself against the teacher, and on the data to evaluate on."""
    from onnxdfq.evaluation import Session, evaluate, load_evaluation_data
    from onnxdfq.pipeline.comparing import compare_floats

    session = Session(staged.where(request.output), called=request.output)
    compare_floats(session, teacher, images, judging, "take a smaller --rate", run)
    if request.evaluation is not None:
        data = load_evaluation_data(request.evaluation, teacher, request.recipe.normalize)
        one = evaluate(session, data, against=teacher, progress=run.progress("evaluating"))
        run.tell(Measurement(values={k: v for k, v in asdict(one).items() if k not in ("notes", "not_finite")}))
