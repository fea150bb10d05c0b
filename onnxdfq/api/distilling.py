"""Distillation of a float student: `distill`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.methods.method import Method
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file, members_of, settled_recipe
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.choices import DEVICES, Effort, OptimizerName, Statistics
from onnxdfq.recipe.distillation import KnowledgeDistillation
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.recipe import Recipe, Settings
from onnxdfq.workers import ALONE, Workers

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike, ZooLike
    from onnxdfq.pipeline.result import Result


def distill(
    teacher: ModelLike,
    student: ModelLike,
    *,
    output: Path | str | None = None,
    train_steps: int | None = None,
    train_batch: int | None = None,
    train_slices: int | None = None,
    optimizer: OptimizerName | None = None,
    rate: float | None = None,
    weight_decay: float | None = None,
    temperature: float | None = None,
    features: float | None = None,
    statistics: Statistics | None = None,
    momentum: float | None = None,
    augmented: bool | None = None,
    recipe: Recipe | None = None,
    method: str | Method | None = None,
    effort: Effort | None = None,
    minutes: float | None = None,
    images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    normalize: str | None = None,
    settings: Settings | None = None,
    zoo: ZooLike = None,
    calibration: Any = None,
    evaluate: Any = None,
    work_dir: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    workers: Workers = ALONE,
    progress: ProgressFactory = silent,
) -> Result:
    """Train a float student against a float teacher without data.

    The student comes back as its own graph, its BatchNormalizations in place, with other numbers in its initializers.

    Args:
        teacher, student: paths, or models in memory, of equal inputs and outputs.
        output: where to write; by default `student.distilled.onnx` beside a student that is a path, and nowhere for one
            in memory.
        train_steps, train_batch, train_slices, optimizer, rate, weight_decay, temperature, features, statistics,
            momentum, augmented: see `KnowledgeDistillation`.
        recipe, method, effort, minutes, images, steps, batch_size, seed, normalize, settings, zoo, calibration: of the
            images, which the teacher makes, as for `compress`. A method that trains a generator (dafl, gdfq, edfq)
            makes them anew at each step, and its generator learns on. Of `calibration` all images train, but those
            that are held back.
        evaluate, work_dir, input_shape, inputs, op_library, device, force, workers, progress: as for `compress`.

    Returns:
        The student as it was trained, with its accuracy where `evaluate` was given; `metrics["loss_curve"]`.

    Raises:
        InputError, OutputError: as `compress`; and where teacher and student do not fit, or nothing in it trains.
    """
    given = {
        "train_steps": train_steps,
        "train_batch": train_batch,
        "train_slices": train_slices,
        "optimizer": optimizer,
        "rate": rate,
        "weight_decay": weight_decay,
        "temperature": temperature,
        "features": features,
        "statistics": statistics,
        "momentum": momentum,
        "augmented": augmented,
    }
    asked = KnowledgeDistillation(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="distill()",
        effort=effort,
        minutes=minutes,
        images=images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize,
        settings=settings,
    )
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.distillation import DistillRequest, run_distillation

    with (
        op_libraries(op_library),
        as_file(teacher) as source,
        as_file(student) as path,
        members_of(zoo) as members,
    ):
        result = run_distillation(
            DistillRequest(
                source=source,
                student=path,
                recipe=settled,
                method=chosen,
                distillation=asked,
                zoo=members,
                output=path.parent / f"{path.stem}.distilled.onnx" if output is None else Path(output),
                calibration=calibration,
                evaluation=list(evaluate) if isinstance(evaluate, Iterator) else evaluate,
                work_dir=None if work_dir is None else Path(work_dir),
                device=device or "auto",
                input_shape=input_shape or {},
                inputs=inputs or {},
                force=force,
                workers=workers,
                progress=progress,
            )
        )
    return result.unwritten() if output is None and not isinstance(student, str | Path) else result
