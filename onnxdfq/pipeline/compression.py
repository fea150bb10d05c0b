"""THE pipeline: a float ONNX model in, a quantized QDQ model out. `STEPS` is its order, top to bottom."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from onnxdfq.errors import InputError
from onnxdfq.pipeline import steps
from onnxdfq.pipeline.job import File, Job, ProgressFactory, for_target
from onnxdfq.pipeline.refusals import refuse_early
from onnxdfq.pipeline.result import Result, Written
from onnxdfq.recipe.bits import read_layer_bits
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.recipe import Recipe
from onnxdfq.targets import load_target

DEVICES = ("auto", "cpu", "cuda")

SYNTHESIS_STEPS: tuple[Callable[[Job], None], ...] = (
    refuse_early,
    steps.load,
    steps.canonicalize,
    steps.make_images,
)
STEPS: tuple[Callable[[Job], None], ...] = (
    *SYNTHESIS_STEPS,
    # decide on the float graph
    steps.compensate,
    steps.fold_batch_norms,
    steps.equalize_channels,
    steps.calibrate,
    steps.tune,
    # then edit
    steps.write_for_targets,
    steps.write_provenance,
    # check and prove
    steps.save,
    steps.measure,
)


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
        bits = recipe.bits.replace("/", "-") if recipe.budget is None and plan is None else "mixed"
        stem = path.parent / f"{path.stem}.{bits}.onnx" if output is None else Path(output)
        job = Job(
            source=path,
            files=[
                File(target=load_target(name), path=stem if len(recipe.targets) == 1 else for_target(stem, name))
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
        job = Job(
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


def _run(job: Job, steps: Sequence[Callable[[Job], None]]) -> None:
    started = time.monotonic()
    for step in steps:
        step(job)
    job.metrics["seconds"] = round(time.monotonic() - started, 1)


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


def _device(name: str) -> str:
    one_of("device", name, DEVICES)
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu.")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
