"""THE pipeline: a float ONNX model in, a quantized QDQ model out. `STEPS` is its order, top to bottom."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from onnxdfq.calibration import Calibration
from onnxdfq.choices import one_of
from onnxdfq.dataset import Dataset, Normalization, load_dataset
from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session, load_evaluation_data
from onnxdfq.evaluation import evaluate as run_evaluation
from onnxdfq.model_file import atomic_write, check_writable, image_input, load_model, model_hash, save_model
from onnxdfq.progress import Progress
from onnxdfq.recipe import Bits, Recipe
from onnxdfq.synthesis import Images, evaluate_images, method_named
from onnxdfq.targets import load_target
from passes.batch_norm import read_batch_norms
from passes.canonicalize import Canonicalize
from passes.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms
from passes.insert_qdq import InsertQdq
from passes.provenance import WriteProvenance, read_provenance
from passes.quant_plan import QuantPlan
from passes.shift_negative import ShiftNegative

DEVICES = ("auto", "cpu", "cuda")
CALIBRATION_IMAGES = 512  # of the user's own, when the recipe names no count

ProgressFactory = Callable[[str], Progress | None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out. `path` is None when nothing was to be written; metrics are the numbers that `--json` prints."""

    model: ir.Model
    path: Path | None
    images: Images
    metrics: Mapping[str, float | int | None]
    notes: Sequence[str]


@dataclass(kw_only=True)
class _Job:
    """What the steps hand on. One name for one graph: `model` is edited in place from the first step to the last."""

    source: Path
    recipe: Recipe
    device: str
    input_shape: Mapping[str, Sequence[int]]
    force: bool
    progress: ProgressFactory
    output: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    save_images: Path | None = None
    model: ir.Model = field(init=False)
    original: Session = field(init=False)
    normalization: Normalization | None = None
    images: Images = field(init=False)
    plan: QuantPlan = field(init=False)
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float | int | None] = field(default_factory=dict)


def compress(
    source: Path | str | onnx.ModelProto | ir.Model,
    *,
    output: Path | str | None = None,
    recipe: Recipe | None = None,
    calibration: Path | str | None = None,
    evaluate: Path | str | None = None,
    device: str = "auto",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    save_images: Path | str | None = None,
    force: bool = False,
    progress: ProgressFactory = lambda _: None,
    **settings: Any,
) -> Result:
    """Quantize a float model without data.

    source: a path, or a model in memory. output: where to write; by default `model.w8a8.onnx` beside a source that is a
    path, and nowhere for a model in memory. recipe: all settings at once; `settings` are fields of `Recipe` (method,
    bits, target, scheme, effort, images, steps, batch_size, seed, normalize, ...) that overrule it. calibration: images
    of the user's own, taken instead of synthesised ones. evaluate: labelled images to measure accuracy on.
    Raises InputError and its kin for what cannot be used, OutputError for what cannot be written.
    """
    recipe = Recipe.from_dict(_given(recipe) | settings, where="compress()")
    with _as_file(source) as path:
        in_memory = not isinstance(source, str | Path)  # it then lies in a temporary folder, and so does the output
        beside = path.parent / f"{path.stem}.{recipe.bits}.onnx"
        job = _Job(
            source=path,
            output=beside if output is None else Path(output),
            recipe=recipe,
            calibration=None if calibration is None else Path(calibration),
            evaluation=None if evaluate is None else Path(evaluate),
            device=_device(device),
            input_shape=input_shape or {},
            save_images=None if save_images is None else Path(save_images),
            force=force,
            progress=progress,
        )
        return _run(job, STEPS, path=None if in_memory and output is None else job.output)


def synthesize(
    source: Path | str | onnx.ModelProto | ir.Model,
    *,
    output: Path | str | None = None,
    device: str = "auto",
    input_shape: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
    progress: ProgressFactory = lambda _: None,
    **settings: Any,
) -> Result:
    """Only the images, as `compress` would make them; written to `output` (.npz) where that is given. The result's
    model is the float model that they were made for, in canonical form. Raises as `compress` does."""
    with _as_file(source) as path:
        job = _Job(
            source=path,
            recipe=Recipe.from_dict(settings, where="synthesize()"),
            device=_device(device),
            input_shape=input_shape or {},
            save_images=None if output is None else Path(output),
            force=force,
            progress=progress,
        )
        return _run(job, SYNTHESIS_STEPS, path=job.save_images)


def _run(job: _Job, steps: Sequence[Callable[[_Job], None]], path: Path | None) -> Result:
    started = time.monotonic()
    for step in steps:
        step(job)
    job.metrics["seconds"] = round(time.monotonic() - started, 1)
    return Result(model=job.model, path=path, images=job.images, metrics=job.metrics, notes=tuple(job.notes))


@contextmanager
def _as_file(source: Path | str | onnx.ModelProto | ir.Model) -> Iterator[Path]:
    """A path is itself; a model in memory lies in a temporary folder, where the loader's checks see it as any file."""
    if isinstance(source, str | Path):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        ir.save(source if isinstance(source, ir.Model) else ir.from_proto(source), path)
        yield path


def _given(recipe: Recipe | None) -> dict[str, Any]:
    """The fields of a recipe that differ from silence, as plain values."""
    return {} if recipe is None else {key: value for key, value in asdict(recipe).items() if value is not None}


def _refuse_early(job: _Job) -> None:
    """What can be wrong about paths and names is found before minutes of work, not after."""
    load_target(job.recipe.target)
    given = {
        "the model itself": job.source,
        "the calibration data": job.calibration,
        "the labelled data": job.evaluation,
    }
    for option, path in (("-o", job.output), ("--save-images", job.save_images)):
        if path is None:
            continue
        for what, source in given.items():
            if source is not None and path.exists() and source.exists() and path.samefile(source):
                raise InputError(f"{path} is {what}; give another name with {option}.")
        check_writable(path, force=job.force)
    if job.output is not None and job.save_images is not None and job.output.resolve() == job.save_images.resolve():
        raise InputError(f"{job.output} cannot take both the model and the images; give another name with -o.")
    for path in (job.calibration, job.evaluation):
        if path is not None and not path.exists():
            raise InputError(f"{path}: there is no such file or folder.")


def _load(job: _Job) -> None:
    job.model = load_model(job.source, input_shape=job.input_shape)
    text = job.recipe.normalize or read_provenance(job.model).get("norm")
    job.normalization = None if text is None else Normalization.parse(text)
    # as loaded and not as in the file: there the batch may be fixed
    job.original = Session(job.source, job.model)
    if job.evaluation is not None:  # data that does not fit is found now, not after the images are made
        load_evaluation_data(job.evaluation, job.original, job.recipe.normalize)


def _canonicalize(job: _Job) -> None:
    Canonicalize()(job.model)


def _make_images(job: _Job) -> None:
    """Images from the statistics that the model carries, or the user's own."""
    recipe = job.recipe
    if job.calibration is not None:
        data = load_dataset(job.calibration, spec=image_input(job.model), normalization=job.normalization)
        pixels = next(data.batches(recipe.images or CALIBRATION_IMAGES))
        job.images = Images(pixels=pixels, method="file", seed=recipe.seed)
    else:
        method, count = method_named(
            recipe.method,
            effort=recipe.effort,
            images=recipe.images,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
        )
        job.images = method.synthesize(
            job.model,
            count=count,
            seed=recipe.seed,
            normalization=job.normalization,
            device=job.device,
            progress=job.progress("synthesizing images"),
        )
    job.metrics["images"] = len(job.images)
    if read_batch_norms(job.model):
        job.metrics |= asdict(evaluate_images(job.model, job.images, device=job.device))
    if job.save_images is not None:
        with atomic_write(job.save_images, force=job.force) as temporary:
            job.images.save(temporary)


def _fold_batch_norms(job: _Job) -> None:
    before = len(read_batch_norms(job.model))
    FoldBatchNorm()(job.model)
    left = unfolded_batch_norms(job.model)
    job.metrics["batch_norms_folded"] = before - len(left)
    job.notes.extend(found.reason for found in left)


def _calibrate(job: _Job) -> None:
    bits = Bits.parse(job.recipe.bits)
    calibration = Calibration(
        weight_bits=bits.weight,
        activation_bits=bits.activation,
        scheme=job.recipe.scheme,
        shift_negative=job.recipe.shift_negative,
    )
    job.plan = calibration.plan(
        job.model,
        job.images.pixels,
        load_target(job.recipe.target),
        device=job.device,
        progress=job.progress("calibrating"),
    )


def _insert_qdq(job: _Job) -> None:
    ShiftNegative(job.plan.shifts)(job.model)
    InsertQdq(job.plan, load_target(job.recipe.target))(job.model)


def _write_provenance(job: _Job) -> None:
    recipe = job.recipe
    entries = {
        "version": version("onnxdfq"),
        "method": job.images.method,
        "bits": recipe.bits,
        "scheme": recipe.scheme,
        "target": recipe.target,
        "seed": str(recipe.seed),
        "images": str(len(job.images)),
        "recipe": hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16],
        "source": model_hash(job.source)[:16],
    }
    if job.normalization is not None:
        entries["norm"] = str(job.normalization)
    WriteProvenance(entries)(job.model)


def _save(job: _Job) -> None:
    assert job.output is not None
    save_model(job.model, job.output, force=job.force)
    job.metrics["bytes_float"] = job.source.stat().st_size
    job.metrics["bytes"] = job.output.stat().st_size


def _measure(job: _Job) -> None:
    """Fidelity on the images that calibrated it, which needs no label; accuracy where the user gave labelled images."""
    assert job.output is not None
    compressed, original = Session(job.output), job.original
    progress = job.progress("comparing with the float model")
    on_images = run_evaluation(compressed, Dataset(images=job.images.pixels), against=original, progress=progress)
    job.metrics |= {"agreement_images": on_images.agreement, "sqnr_db_images": on_images.sqnr_db}
    if job.evaluation is not None:
        data = load_evaluation_data(job.evaluation, compressed, job.recipe.normalize)
        measured = run_evaluation(compressed, data, against=original, progress=job.progress("evaluating"))
        job.metrics |= asdict(measured)


SYNTHESIS_STEPS: tuple[Callable[[_Job], None], ...] = (_refuse_early, _load, _canonicalize, _make_images)
STEPS: tuple[Callable[[_Job], None], ...] = (
    *SYNTHESIS_STEPS,
    # decide on the float graph
    _fold_batch_norms,
    _calibrate,
    # then edit
    _insert_qdq,
    _write_provenance,
    # check and prove
    _save,
    _measure,
)


def _device(name: str) -> str:
    one_of("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
