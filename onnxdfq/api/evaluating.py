"""What is measured on a file: `evaluate` and `compare_runtimes`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file
from onnxdfq.progress import ProgressFactory, silent

if TYPE_CHECKING:
    from onnxdfq.evaluation import Evaluation, RuntimeDifference
    from onnxdfq.pipeline.arguments import ModelLike


def evaluate(
    model: ModelLike,
    data: Any,
    *,
    against: ModelLike | None = None,
    normalize: str | None = None,
    op_library: Sequence[Path | str] = (),
    progress: ProgressFactory = silent,
) -> Evaluation:
    """Measure a model on images or other inputs: accuracy where they are labelled, closeness to its float original.

    Args:
        model: a path, or a model in memory.
        data: a path, an array, a mapping of arrays by input name, a dataset or an iterable of batches, as for
            `compress`.
        against: the float model to compare with.
        normalize: how inputs are normalised; a model that onnxdfq wrote remembers it.
        op_library: as for `compress`.

    Returns:
        Shares between 0 and 1, and the signal to noise in dB; None what could not be measured.

    Raises:
        ModelFileError: ONNX Runtime refuses a model. DataError: the images do not fit, or the models differ.
    """
    from onnxdfq.evaluation import Session, load_evaluation_data
    from onnxdfq.evaluation import evaluate as run
    from onnxdfq.evaluation.saturation import saturation_note

    with (
        op_libraries(op_library),
        as_file(model) as path,
        nullcontext() if against is None else as_file(against) as other,
    ):
        session = Session(path)
        original = None if other is None else Session(other)
        images = load_evaluation_data(data, session, normalize)
        found = run(session, images, against=original, progress=progress("evaluating"))
        note = saturation_note(path, exact=session.exact)
        return found if note is None else replace(found, notes=(note,))


def compare_runtimes(
    model: ModelLike,
    data: Any,
    *,
    runtime: str | Sequence[str] = ("ort", "openvino", "engine"),
    normalize: str | None = None,
    op_library: Sequence[Path | str] = (),
    progress: ProgressFactory = silent,
) -> tuple[RuntimeDifference, ...]:
    """How far several runtimes' outputs lie from those of ONNX Runtime without optimisations, in steps of the output.

    Args:
        model, data, normalize, op_library: as for `evaluate`.
        runtime: "ort", "ort-unoptimised", "openvino" and "engine" (onnxdfq's own); a string has them between commas.

    Returns:
        For each runtime how far it is from the unoptimised one.

    Raises:
        InputError: a runtime is none of these, or is not installed. ModelFileError, DataError: as `evaluate`.
    """
    names = [name.strip() for name in runtime.split(",")] if isinstance(runtime, str) else list(runtime)
    from onnxdfq.evaluation.runtimes import compare_runtimes as run

    with op_libraries(op_library), as_file(model) as path:
        return run(path, data, names, normalize=normalize, progress=progress("comparing runtimes"))
