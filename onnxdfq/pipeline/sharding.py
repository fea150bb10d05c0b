"""More images than memory holds: several files, each a synthesis of its own."""

import gc
from dataclasses import replace
from pathlib import Path

from onnxdfq.limits import Bounds
from onnxdfq.model_file.writing import check_folder, check_writable, make_folder
from onnxdfq.pipeline.compression import run_synthesis
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Result

FILES = Bounds(least=1, most=10_000)


def run_synthesis_in_files(request: Request, folder: Path, count: int) -> Result:
    """As many files as that, from as many seeds, one after another; each takes its place as soon as it is made.

    Args:
        request: Of the first file; `save_images` is not looked at.
        folder: Where they go; it is made.
        count: Of the files.

    Returns:
        Of the last file, with the number of all images, and none of them.

    Raises:
        InputError, OutputError: As `run_synthesis`, and where a file is there already.
    """
    FILES.check("files", count)
    files = [folder / f"{part:05}.npz" for part in range(count)]
    check_folder(folder)
    for file in files if folder.exists() else ():
        check_writable(file, force=request.force)
    make_folder(folder)
    images = 0
    for part, file in enumerate(files):
        recipe = replace(request.recipe, seed=request.recipe.seed + part)
        # without its images, which are on the disk: those of the next file are made while this lives
        result = replace(run_synthesis(replace(request, save_images=file, recipe=recipe)), images=None)
        images += result.metrics.get("images", 0)
        gc.collect()  # networks hold one another in circles: left to itself, memory grows from file to file
    return replace(result, path=folder, metrics={**result.metrics, "images": images})
