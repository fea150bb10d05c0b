"""Images alone: `synthesize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdfq.errors import InputError
from onnxdfq.methods.method import Method
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file, members_of, settled_recipe
from onnxdfq.pipeline.request import Request
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.choices import DEVICES, Effort
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.recipe import Recipe, Settings
from onnxdfq.recipe.shard import WHOLE, Shard
from onnxdfq.workers import ALONE, Workers

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike, ZooLike
    from onnxdfq.pipeline.result import Result


def synthesize(
    model: ModelLike,
    *,
    output: Path | str | None = None,
    files: int | None = None,
    shard: str | None = None,
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
    work_dir: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, str] | None = None,
    op_library: Sequence[Path | str] = (),
    device: str | None = None,
    force: bool = False,
    workers: Workers = ALONE,
    progress: ProgressFactory = silent,
) -> Result:
    """Only the images, as `compress` would make them; the arguments are its own.

    Args:
        model: a path, or a model in memory.
        output: the .npz file to write; by default none.
        files: as many files, each of so many images and of the next seed; `output` is their folder, and what trains
            takes it as `calibration`.
        shard: "3/8" for the third of eight shares, each made by a run of its own; `merge_images` joins them.

    Returns:
        The images (none of several files), and as model the float network that they were made for, in canonical form.

    Raises:
        InputError, OutputError: as `compress`.
    """
    settled, chosen = settled_recipe(
        recipe,
        method,
        where="synthesize()",
        effort=effort,
        minutes=minutes,
        images=images,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        normalize=normalize,
        settings=settings,
    )
    part = WHOLE if shard is None else Shard.parse(shard)
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.compression import run_synthesis

    with op_libraries(op_library), as_file(model) as path, members_of(zoo) as members:
        request = Request(
            source=path,
            recipe=settled,
            method=chosen,
            zoo=members,
            device=device or "auto",
            input_shape=input_shape or {},
            inputs=inputs or {},
            save_images=None if output is None else Path(output),
            work_dir=None if work_dir is None else Path(work_dir),
            force=force,
            workers=workers,
            shard=part,
            progress=progress,
        )
        if files is None:
            return run_synthesis(request)
        if not part.is_whole:
            raise InputError("Each of several files has a seed of its own, and no shards; leave --files out.")
        from onnxdfq.pipeline.sharding import run_synthesis_in_files

        if output is None:
            raise InputError("Several files need a folder; name it with -o.", field="files")
        return run_synthesis_in_files(request, Path(output), files)
