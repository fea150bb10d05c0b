"""`diagnose`: the files and the samples of a diagnosis, and then `inquire`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.images.samples import Samples
from onnxdfq.model_file import blaming
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.report.diagnosis.inquiry import inquire
from onnxdfq.report.diagnosis.reading import network_of, read_original, read_quantized, samples_for
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.targets import load_target
from passes.write.provenance import read_provenance


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosed:
    """A diagnosis, and what it rests on. model: the file; original: the float model, canonical, its
    BatchNormalizations in place; None where there is none."""

    diagnosis: Diagnosis
    samples: Samples
    model: ir.Model
    original: ir.Model | None


def diagnose(
    path: Path | str,
    *,
    against: Path | str | None = None,
    data: Any = None,
    target: str | None = None,
    normalize: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: ProgressFactory = silent,
) -> Diagnosed:
    """What is wrong with a QDQ file, of this tool or another.

    Args:
        path: Of the file; it is only read.
        against: The float model. Without it, the file with its quantizers taken out, where weights count as exact.
        data: Inputs of the user's own, as `load_data` reads them, or `Images`; made where there are none.
        target: Whose kernels to judge by, a name or the path of a target file; by default the one that the file was
            written for, else "ort".
        normalize: How inputs were normalised, where the file does not say.
        seed: What is made is drawn from it.
        device: Where networks run.
        progress: Makes the display of one long stage.

    Raises:
        InputError: A file is not what it should be, or the two are not the same network.
        DataError: The data does not fit.
    """
    path = Path(path)
    if target is not None:
        load_target(target)  # a wrong one is refused before anything is read
    original, folded = (None, None) if against is None else read_original(Path(against))
    quantized = read_quantized(path, folded)
    notes: list[str] = []
    with blaming(path):
        samples, what = samples_for(
            network_of(quantized) if original is None else original,
            data,
            path=path,
            normalize=normalize or read_provenance(quantized.model).get("norm"),
            seed=seed,
            device=device,
            progress=progress,
            tell=notes.append,
        )
        diagnosis = inquire(
            quantized,
            folded,
            samples,
            data=what,
            against="" if against is None else str(against),
            target=target,
            device=device,
            notes=notes,
            progress=progress,
        )
    return Diagnosed(diagnosis=diagnosis, samples=samples, model=quantized.model, original=original)
