"""The Python door to diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.choices import DEVICES
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike
    from onnxdfq.report.diagnosis.result import Diagnosis


def diagnose(
    model: ModelLike,
    *,
    against: ModelLike | None = None,
    data: Any = None,
    target: str | None = None,
    normalize: str | None = None,
    seed: int = 0,
    report: Path | str | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    progress: ProgressFactory = silent,
) -> Diagnosis:
    """Which layer of a QDQ model hurts, why, and what to try; models of other tools, too.

    Args:
        model: a path, or a model in memory; quantized.
        against: the float model. Without it, the quantized one with its quantizers taken out: then weights count as
            exact.
        data: inputs of the user's own, as for `compress`; made where there are none.
        target: whose kernels to judge by; by default the one that the model was written for, else "ort".
        normalize: how inputs are normalised; a model that onnxdfq wrote remembers it.
        seed: what is made is drawn from it. report: where to write all of it, as .html or .json (see `compress`).
        op_library, device, force, progress: as for `compress`.

    Raises:
        InputError: the model is float, or no QDQ, or the float model is another network. DataError: the data does not
            fit.
    """
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.checks import found_device
    from onnxdfq.report.assembling import report_of_diagnosis
    from onnxdfq.report.command import diagnose_command
    from onnxdfq.report.diagnosis.diagnosis import diagnose as run
    from onnxdfq.report.writing import check_report, write_report

    if report is not None:
        check_report(Path(report), force=force)
    with (
        op_libraries(op_library),
        as_file(model) as path,
        nullcontext() if against is None else as_file(against) as other,
    ):
        found = run(
            path,
            against=other,
            data=data,
            target=target,
            normalize=normalize,
            seed=seed,
            device=(where := found_device(device or "auto")),
            progress=progress,
        )
        if report is not None:
            command = diagnose_command(
                str(path), against=against, data=data, target=target, normalize=normalize, seed=seed
            )
            whole = report_of_diagnosis(found, command, device=where)
            write_report(Path(report), whole, {found.diagnosis.target: found.model}, force=force)
        return found.diagnosis
