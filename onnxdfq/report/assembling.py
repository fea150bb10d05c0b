"""Reports of runs: what was measured, diagnosed and decided, put together."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.errors import DfqError, InputError
from onnxdfq.evaluation import Session, evaluate
from onnxdfq.images.dataset import Dataset
from onnxdfq.images.images import Images
from onnxdfq.images.samples import Samples
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.pipeline.checks import found_device
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Metrics, Result, TargetResult
from onnxdfq.pipeline.verdict import verdict
from onnxdfq.report.command import compress_command
from onnxdfq.report.diagnosis.diagnosis import Diagnosed
from onnxdfq.report.diagnosis.inquiry import inquire
from onnxdfq.report.diagnosis.reading import folded, quantized_of, samples_for
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.report.pictures import images_report
from onnxdfq.report.run import FileReport, Number, RunReport
from onnxdfq.report.writing import write_report
from onnxdfq.synthesis.quality import distances_by_layer
from passes.graph.batch_norm import read_batch_norms
from passes.write.provenance import read_provenance

PACKAGES = ("onnxdfq", "onnx", "onnx-ir", "onnxruntime", "torch", "numpy")


def versions() -> dict[str, str]:
    """What the run ran in."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def tell_of_compression(request: Request, result: Result, path: Path) -> None:
    """Write the report of a compression whose files are written.

    Raises:
        OutputError: The report cannot be written.
    """
    report = report_of_compression(request, result, found_device(request.device))
    models = {name: target.model for name, target in result.targets.items()}
    write_report(path, report, models, force=request.force)


def report_of_compression(request: Request, result: Result, device: str) -> RunReport:
    """All files of a compression, each diagnosed against the float model.

    Args:
        request: What was asked for.
        result: What came of it, its files written, and the float network that it came of.
        device: Where networks run.
    """
    original = result.original
    assert original is not None
    exact, notes = folded(original), list(result.notes)
    samples, what = samples_for(
        original,
        result.images if request.calibration is not None else None,
        path=request.source,
        normalize=request.recipe.normalize,
        seed=request.recipe.seed,
        device=device,
        progress=request.progress,
        tell=lambda _: None,  # told by the run itself
    )
    files = []
    for name, target in result.targets.items():
        diagnosis = _diagnosed(target, request, exact, samples, what, device, notes)
        files.append(_file(name, target, request.source, result, diagnosis))
    images = result.images
    return RunReport(
        source=str(request.source),
        command=compress_command(request),
        versions=versions(),
        files=tuple(files),
        images=None if images is None else images_report(original, images, _own(request, original), result.distances),
        notes=tuple(notes),
    )


def _diagnosed(
    target: TargetResult,
    request: Request,
    exact: ir.Model,
    samples: Samples,
    what: str,
    device: str,
    notes: list[str],
) -> Diagnosis | None:
    assert target.path is not None
    try:
        return inquire(
            quantized_of(target.model.clone(), target.path, exact),
            exact,
            samples,
            data=what,
            against=str(request.source),
            judged=target.findings,
            device=device,
            progress=request.progress,
        )
    except InputError as error:  # operators on integers, weights alone: the file is good, and no QDQ
        notes.append(str(error))
        return None


def _own(request: Request, original: ir.Model) -> Any:
    """The images that the run was evaluated on, as far as they are looked at; None without any."""
    if request.evaluation is None:
        return None
    try:
        found, _ = samples_for(
            original,
            request.evaluation,
            path=request.source,
            normalize=request.recipe.normalize,
            seed=0,
            device="cpu",
            progress=request.progress,
            tell=lambda _: None,
        )
    except DfqError:  # an iterator that the evaluation has used up
        return None
    return found.main


def _file(name: str, target: TargetResult, source: Path, result: Result, diagnosis: Diagnosis | None) -> FileReport:
    metrics: Metrics = {**result.metrics, **target.metrics}
    found = metrics.get("sqnr_db_held_back", metrics.get("sqnr_db_images"))
    agreement = metrics.get("agreement_held_back", metrics.get("agreement_images"))
    provenance = read_provenance(target.model)
    return FileReport(
        target=name,
        path=str(target.path),
        bits=provenance.get("bits", ""),
        bytes=metrics.get("bytes", 0),
        bytes_float=metrics.get("bytes_float") or bytes_of(source),
        verdict=str(metrics.get("verdict", "")),
        sqnr_db=found if isinstance(found, float) else None,
        agreement=agreement if isinstance(agreement, float) else None,
        metrics=_numbers(metrics),
        provenance=provenance,
        diagnosis=diagnosis,
    )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, Number]:
    return {key: value for key, value in metrics.items() if value is None or isinstance(value, int | float | str)}


def report_of_diagnosis(found: Diagnosed, command: str, *, device: str) -> RunReport:
    """Of one file that is there already.

    Args:
        found: The diagnosis, and what it rests on.
        command: That repeats it.
        device: Where networks run.

    Raises:
        DataError: The samples do not run in ONNX Runtime.
    """
    diagnosis, samples = found.diagnosis, found.samples
    model = found.original or found.model
    images = Images(pixels=samples.main, others=samples.others, method=diagnosis.data, seed=0)
    distances = distances_by_layer(model, images, device=device) if read_batch_norms(model) else {}
    file = FileReport(
        target=diagnosis.target,
        path=diagnosis.file,
        bits=_bits(diagnosis),
        bytes=bytes_of(Path(diagnosis.file)),
        bytes_float=bytes_of(Path(diagnosis.against)) if diagnosis.against else None,
        verdict=verdict(diagnosis.level_db),
        sqnr_db=diagnosis.sqnr_db,
        agreement=_agreement(diagnosis, samples),
        metrics={},
        provenance=read_provenance(found.model),
        diagnosis=replace(diagnosis, notes=()),
    )
    return RunReport(
        source=diagnosis.against or diagnosis.file,
        command=command,
        versions=versions(),
        files=(file,),
        images=images_report(model, images, None, distances),
        notes=diagnosis.notes,
    )


def _agreement(diagnosis: Diagnosis, samples: Samples) -> float | None:
    if not diagnosis.against:
        return None
    data = Dataset(images=samples.main, others=samples.others, as_it_is=True)
    return evaluate(Session(Path(diagnosis.file)), data, against=Session(Path(diagnosis.against))).agreement


def _bits(diagnosis: Diagnosis) -> str:
    """As `--bits` has them, the least and the most where layers differ."""
    weights = [layer.weight_bits for layer in diagnosis.layers if layer.weight_bits is not None]
    activations = [layer.activation_bits for layer in diagnosis.layers if layer.activation_bits is not None]
    return f"w{_span(weights)}a{_span(activations)}"


def _span(widths: Sequence[int]) -> str:
    if not widths:
        return "32"
    return str(min(widths)) if min(widths) == max(widths) else f"{min(widths)}-{max(widths)}"
