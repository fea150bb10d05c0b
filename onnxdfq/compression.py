"""THE pipeline: a float ONNX model in, a quantized QDQ model out. `STEPS` is its order, top to bottom."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from onnxdfq.budget import Budget, check_budget, choose_bits
from onnxdfq.calibration import Calibration
from onnxdfq.choices import one_of
from onnxdfq.dataset import Dataset, Normalization, load_dataset
from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.evaluation import Session, load_evaluation_data
from onnxdfq.evaluation import evaluate as run_evaluation
from onnxdfq.layer_bits import WEIGHT_BITS, LayerBits, bits_of_plan, check_layers, layer_bits_toml, read_layer_bits
from onnxdfq.model_file import atomic_write, check_writable, image_input, load_model, model_hash, save_model
from onnxdfq.progress import Progress
from onnxdfq.recipe import Bits, Recipe
from onnxdfq.result import Result, Written
from onnxdfq.synthesis import Images, evaluate_images, method_named
from onnxdfq.targets import load_target
from onnxdfq.tuning import Tuning, tuning_for
from passes.batch_norm import read_batch_norms
from passes.canonicalize import Canonicalize
from passes.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms
from passes.provenance import WriteProvenance, read_provenance
from passes.quant_plan import QuantPlan, same_numbers
from passes.quant_points import find_quant_points
from passes.set_opset import SetOpset
from passes.target import Target
from passes.write_for_target import WriteForTarget

DEVICES = ("auto", "cpu", "cuda")
PLAN_COMMENT = """Bits of each layer's weight, and of the activation that it reads.
Change a line and give the file back with --plan; layers that it leaves out take --bits, or what --budget allows."""
CALIBRATION_IMAGES = 512  # of the user's own, when the recipe names no count

ProgressFactory = Callable[[str], Progress | None]


@dataclass(kw_only=True)
class _File:
    """One target's part of the job: its numbers, its graph, its file."""

    target: Target
    path: Path
    plan: QuantPlan = field(init=False)
    model: ir.Model = field(init=False)
    metrics: dict[str, float | int | None] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Job:
    """What the steps hand on. One name for one graph: `model` is the float one, edited in place until numbers are
    decided on it; each of `files` then has a graph of its own."""

    source: Path
    recipe: Recipe
    device: str
    input_shape: Mapping[str, Sequence[int]]
    force: bool
    progress: ProgressFactory
    files: Sequence[_File] = ()
    calibration: Path | None = None
    evaluation: Path | None = None
    save_images: Path | None = None
    pins: Mapping[str, LayerBits] = field(default_factory=dict)
    save_plan: Path | None = None
    model: ir.Model = field(init=False)
    original: Session = field(init=False)
    normalization: Normalization | None = None
    images: Images = field(init=False)
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
    plan: Path | str | None = None,
    save_plan: Path | str | None = None,
    force: bool = False,
    progress: ProgressFactory = lambda _: None,
    **settings: Any,
) -> Result:
    """Quantize a float model without data.

    source: a path, or a model in memory. output: where to write; by default `model.w8a8.onnx` beside a source that is a
    path, and nowhere for a model in memory; for several targets (target="ort,openvino") each file has the target in its
    name, `model.w8a8.ort.onnx`. recipe: all settings at once; `settings` are fields of `Recipe` (method,
    bits, target, scheme, effort, images, steps, batch_size, seed, normalize, ...) that overrule it. calibration: images
    of the user's own, taken instead of synthesised ones. evaluate: labelled images to measure accuracy on. plan: a TOML
    file that pins the bits of single layers (see `layer_bits`); save_plan: where to write those of all layers.
    Raises InputError and its kin for what cannot be used, OutputError for what cannot be written.
    """
    recipe = Recipe.from_dict(_given(recipe) | settings, where="compress()")
    with _as_file(source) as path:
        in_memory = not isinstance(source, str | Path)  # it then lies in a temporary folder, and so does the output
        unwritten = in_memory and output is None
        bits = recipe.bits if recipe.budget is None and plan is None else "mixed"
        stem = path.parent / f"{path.stem}.{bits}.onnx" if output is None else Path(output)
        job = _Job(
            source=path,
            files=[
                _File(target=load_target(name), path=stem if len(recipe.targets) == 1 else _for_target(stem, name))
                for name in recipe.targets
            ],
            recipe=recipe,
            calibration=None if calibration is None else Path(calibration),
            evaluation=None if evaluate is None else Path(evaluate),
            device=_device(device),
            input_shape=input_shape or {},
            save_images=None if save_images is None else Path(save_images),
            pins={} if plan is None else read_layer_bits(Path(plan)),
            save_plan=None if save_plan is None else Path(save_plan),
            force=force,
            progress=progress,
        )
        _run(job, STEPS)
    written = {
        file.target.name: Written(model=file.model, path=None if unwritten else file.path, metrics=file.metrics)
        for file in job.files
    }
    first = next(iter(written.values()))
    return Result(
        model=first.model,
        path=first.path,
        images=job.images,
        metrics={**job.metrics, **first.metrics},
        notes=tuple(job.notes),
        written=written,
    )


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
        _run(job, SYNTHESIS_STEPS)
    return Result(model=job.model, path=job.save_images, images=job.images, metrics=job.metrics, notes=tuple(job.notes))


def _run(job: _Job, steps: Sequence[Callable[[_Job], None]]) -> None:
    started = time.monotonic()
    for step in steps:
        step(job)
    job.metrics["seconds"] = round(time.monotonic() - started, 1)


def _plan_path(job: _Job, file: _File) -> Path:
    assert job.save_plan is not None
    return job.save_plan if len(job.files) == 1 else _for_target(job.save_plan, file.target.name)


def _for_target(path: Path, target: str) -> Path:
    """`model.w8a8.onnx` → `model.w8a8.ort.onnx`."""
    return path.with_name(f"{path.stem}.{target}{path.suffix}")


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
    for file in job.files:
        _calibration(job).check(file.target)
    tuning = _tuning(job)
    if tuning is not None and job.recipe.images is not None:
        tuning.check(job.recipe.images)
    outputs = [("-o", file.path) for file in job.files]
    given = {
        "the model itself": job.source,
        "the calibration data": job.calibration,
        "the labelled data": job.evaluation,
    }
    if job.save_plan is not None:
        outputs += [("--save-plan", _plan_path(job, file)) for file in job.files]
    for option, path in outputs + ([] if job.save_images is None else [("--save-images", job.save_images)]):
        for what, source in given.items():
            if source is not None and path.exists() and source.exists() and path.samefile(source):
                raise InputError(f"{path} is {what}; give another name with {option}.")
        check_writable(path, force=job.force)
    for _, path in outputs:
        if job.save_images is not None and path.resolve() == job.save_images.resolve():
            raise InputError(f"{path} cannot take both the model and the images; give another name with -o.")
    for data in (job.calibration, job.evaluation):
        if data is not None and not data.exists():
            raise InputError(f"{data}: there is no such file or folder.")


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
    for target in [file.target for file in job.files if job.model.opset_imports[""] > file.target.opset]:
        try:  # an operator that the target's opset lacks is found now, not after the images are made
            SetOpset(target.opset).requires(job.model)
        except ir.passes.PreconditionError as error:
            raise InputError(f"The target {target.name} reads opset {target.opset} and older. {error}") from error
    for file in job.files:
        check_layers(job.pins, find_quant_points(job.model, file.target))
        if job.recipe.budget is not None:
            check_budget(job.model, _calibration(job), file.target, Budget.parse(job.recipe.budget))


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


def _calibration(job: _Job) -> Calibration:
    recipe, bits = job.recipe, Bits.parse(job.recipe.bits)
    return Calibration(
        weight_bits=bits.weight,
        activation_bits=bits.activation,
        scheme=recipe.scheme,
        shift_negative=recipe.shift_negative,
        layer_bits=job.pins,
    )


def _calibrate(job: _Job) -> None:
    """One look at the images, and each target decides by it."""
    calibration = _calibration(job)
    targets = [file.target for file in job.files]
    observations = calibration.observe(
        job.model, job.images.pixels, targets, device=job.device, progress=job.progress("calibrating")
    )
    for file in job.files:
        own = calibration
        if job.recipe.budget is not None:
            chosen = choose_bits(
                job.model,
                job.images.pixels,
                observations,
                calibration,
                file.target,
                Budget.parse(job.recipe.budget),
                device=job.device,
                progress=job.progress("measuring layers"),
            )
            own = replace(calibration, layer_bits=chosen.layers)
            file.metrics |= {"weight_bytes": round(chosen.size), "bit_operations": chosen.bops}
            containers = {bits: file.target.weight_container(bits) for bits in set(chosen.weight_bits.values())}
            if wider := sorted({name for bits, name in containers.items() if name != f"int{bits}"}):
                job.notes.append(
                    f"--budget counts weights at their bits; the target {file.target.name} keeps some of them in "
                    f"{' and '.join(wider)}, so its file is larger."
                )
        file.plan = own.decide(job.model, observations, file.target)
        if job.save_plan is not None:
            bits = bits_of_plan(job.model, file.plan, find_quant_points(job.model, file.target))
            with atomic_write(_plan_path(job, file), force=job.force) as temporary:
                temporary.write_text(layer_bits_toml(bits, comment=PLAN_COMMENT), encoding="utf-8")


def _tuning(job: _Job) -> Tuning | None:
    recipe = job.recipe
    asked = [Bits.parse(recipe.bits).weight, *(pin.weight for pin in job.pins.values() if pin.weight is not None)]
    return tuning_for(
        recipe.tuning,
        weight_bits=min(asked) if recipe.budget is None else min(WEIGHT_BITS),
        learn_steps=recipe.scheme == "free",
        effort=recipe.effort,
    )


def _tune(job: _Job) -> None:
    """Roundings, steps and biases by reconstruction; once for all targets whose plans are the same."""
    recipe, tuning = job.recipe, _tuning(job)
    if tuning is None:
        return
    done: list[tuple[QuantPlan, QuantPlan]] = []
    for file in job.files:
        plan = file.plan
        file.plan = next((tuned for planned, tuned in done if same_numbers(planned, plan)), plan)
        if file.plan is not plan:
            continue
        file.plan, parts = tuning.tune(
            job.model,
            plan,
            file.target,
            job.images.pixels,
            seed=recipe.seed,
            device=job.device,
            progress=job.progress("tuning"),
        )
        done.append((plan, file.plan))
        file.metrics |= {"blocks_tuned": len(parts)}
        job.notes.extend(dict.fromkeys(part.block.fallback for part in parts if part.block.fallback))


def _write_for_targets(job: _Job) -> None:
    for file in job.files:
        file.model = job.model.clone()
        WriteForTarget(file.plan, file.target)(file.model)


def _write_provenance(job: _Job) -> None:
    recipe = job.recipe
    entries = {
        "version": version("onnxdfq"),
        "method": job.images.method,
        "bits": recipe.bits,
        "scheme": recipe.scheme,
        "seed": str(recipe.seed),
        "images": str(len(job.images)),
        "recipe": hashlib.sha256(recipe.to_toml().encode()).hexdigest()[:16],
        "source": model_hash(job.source)[:16],
    }
    if job.normalization is not None:
        entries["norm"] = str(job.normalization)
    for file in job.files:
        WriteProvenance(entries | {"target": file.target.name})(file.model)


def _save(job: _Job) -> None:
    job.metrics["bytes_float"] = job.source.stat().st_size
    for file in job.files:
        save_model(file.model, file.path, force=job.force, inner_shapes=file.target.inner_shapes)
        file.metrics["bytes"] = file.path.stat().st_size


def _measure(job: _Job) -> None:
    """Fidelity on the images that calibrated it, which needs no label; accuracy where the user gave labelled images."""
    on_images = Dataset(images=job.images.pixels)
    for file in job.files:
        compressed, original = _session(file), job.original
        progress = job.progress("comparing with the float model")
        measured = run_evaluation(compressed, on_images, against=original, progress=progress)
        file.metrics |= {"agreement_images": measured.agreement, "sqnr_db_images": measured.sqnr_db}
        if job.evaluation is not None:
            data = load_evaluation_data(job.evaluation, compressed, job.recipe.normalize)
            measured = run_evaluation(compressed, data, against=original, progress=job.progress("evaluating"))
            file.metrics |= asdict(measured)
        if not file.target.verified:
            job.notes.append(
                f"The file for {file.target.title} was measured in ONNX Runtime and not run on that runtime: its form "
                "rests on documents alone."
            )
        if not compressed.fused:
            job.notes.append(
                f"ONNX Runtime reads the file for the target {file.target.name} only without its fusions, in float."
            )


def _session(file: _File) -> Session:
    """With integer kernels where ONNX Runtime makes them; only of the files for itself does it have to."""
    try:
        return Session(file.path)
    except ModelFileError:
        if file.target.name == "ort":
            raise
        return Session(file.path, fuse=False)


SYNTHESIS_STEPS: tuple[Callable[[_Job], None], ...] = (_refuse_early, _load, _canonicalize, _make_images)
STEPS: tuple[Callable[[_Job], None], ...] = (
    *SYNTHESIS_STEPS,
    # decide on the float graph
    _fold_batch_norms,
    _calibrate,
    _tune,
    # then edit
    _write_for_targets,
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
