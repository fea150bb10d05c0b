"""Pruning: `prune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import InputError
from onnxdfq.methods.method import Method
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file, members_of, settled_recipe
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.budget import OF_CHANNELS, Budget
from onnxdfq.recipe.choices import DEVICES, Effort, Statistics
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.pruning import MULTIPLE, Pruning, parse_repair
from onnxdfq.recipe.recipe import Recipe, Settings
from onnxdfq.workers import ALONE, Workers

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike, ZooLike
    from onnxdfq.pipeline.result import Result


def prune(
    model: ModelLike,
    *,
    output: Path | str | None = None,
    sparsity: float | None = None,
    channels: float | None = None,
    pattern: str | None = None,
    budget: str | None = None,
    multiple: int | None = None,
    repair: str | Sequence[str] | None = None,
    train_steps: int | None = None,
    train_slices: int | None = None,
    statistics: Statistics | None = None,
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
    work_dir: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    workers: Workers = ALONE,
    progress: ProgressFactory = silent,
) -> Result:
    """Prune a float model without data; it stays a float model with its BatchNormalizations, for `compress` to take.

    Args:
        model: a path, or a model in memory.
        output: where to write; by default `model.pruned.onnx` beside a model that is a path, and nowhere for one in
            memory.
        sparsity: the share of each layer's weights that becomes zero, those of least magnitude.
        channels: the share of each layer's channels that is removed, those whose readers lose least.
        pattern: "2:4": two of four neighbouring weights along the input channels become zero.
        budget: "size=0.5MB", "macs=20M" or "latency=5ms", or a share of the model's own, "macs=0.7": channels go where
            they do least harm, by images, until the model costs no more. Latency is measured in ONNX Runtime, on this
            machine. One of these four.
        multiple: of channels, of which each layer keeps one; 8 by default.
        repair: "none", "moments" (means in closed form, no images), "least-squares" (on images), "distillation" (on
            images, towards the model that was pruned), or several; by default the first two. train_steps, train_slices,
            statistics: of the last, as for `distill`.
        recipe, method, effort, minutes, images, steps, batch_size, seed, normalize, settings, zoo, calibration: of the
            images for the repair, as for `compress`.
        work_dir, input_shape, inputs, op_library, device, force, workers, progress: as for `compress`.

    Returns:
        The pruned model; `metrics` tells what went, and what it costs.

    Raises:
        InputError, OutputError: as `compress`; and where nothing can be pruned, or a layer would be left empty.
    """
    pruning = Pruning(
        sparsity=sparsity,
        channels=channels,
        pattern=pattern,
        budget=None if budget is None else Budget.parse(budget, OF_CHANNELS, shares=True),
        multiple=MULTIPLE if multiple is None else multiple,
        repair=parse_repair(repair),
        train_steps=train_steps,
        train_slices=train_slices,
        statistics=statistics,
    )
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="prune()",
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
    for field, given in (("calibration", calibration is not None), ("zoo", bool(zoo))):
        if given and not pruning.looks_at_images:
            raise InputError(
                "Only least squares, distillation and budgets look at inputs: name one with --repair.", field=field
            )
    from onnxdfq.pipeline.pruning import PruneRequest, run_pruning

    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        result = run_pruning(
            PruneRequest(
                source=path,
                recipe=settled,
                method=chosen if pruning.looks_at_images else None,
                pruning=pruning,
                zoo=members,
                output=path.parent / f"{path.stem}.pruned.onnx" if output is None else Path(output),
                calibration=calibration,
                work_dir=None if work_dir is None else Path(work_dir),
                device=device or "auto",
                input_shape=input_shape or {},
                inputs=inputs or {},
                force=force,
                workers=workers,
                progress=progress,
            )
        )
    return result.unwritten() if output is None and not isinstance(model, str | Path) else result
