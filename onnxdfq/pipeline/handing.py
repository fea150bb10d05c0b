"""For tools that quantize by themselves: the images that they calibrate on, beside the float model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from onnxdfq.images.images import Images
from onnxdfq.images.png import png
from onnxdfq.methods.method import FloatModel, Note, Run
from onnxdfq.model_file import main_input
from onnxdfq.model_file.inputs import CHANNELS
from onnxdfq.model_file.writing import Staged
from onnxdfq.pipeline.request import Output


def stage_handed(output: Output, model: FloatModel, images: Images, staged: Staged, run: Run) -> None:
    """Writes the images of a target of format "float", beside its model:

    1. An archive, .npz: `images` in the model's own units and layout, other inputs by their names.
    2. An array, .npy: the same, float32 (N, H, W, C) where the model takes pictures.
    3. A folder of PNG files, where the model takes pictures and it is known how bytes become its numbers.

    Raises:
        OutputError: one of them cannot be written.
    """
    archive, array, folder = output.handed
    with staged.file(archive) as temporary:
        images.save(temporary)
    spec = main_input(model.graph)
    last = images.pixels.transpose(0, 2, 3, 1) if spec.image == "first" else images.pixels
    with staged.file(array) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.ascontiguousarray(last))
    pictures = _pictures(model, images)
    if pictures is None:
        run.tell(Note(text=f"No PNG files are written: {_why_none(model)}."))
        return
    with staged.folder(folder) as temporary:
        for number, picture in enumerate(pictures):
            (temporary / f"{number:05}.png").write_bytes(png(picture))
    _tell_of_scale(output, model, run)


def tell_what_next(outputs: Sequence[Output], run: Run) -> None:
    """What the targets' notes say of the files."""
    for output in outputs:
        if not output.target.note or output.path is None:
            continue
        archive, array, _ = output.handed
        text = output.target.note
        for key, value in {"model": output.path, "archive": archive, "array": array}.items():
            text = text.replace(f"{{{key}}}", str(value))
        run.tell(Note(text=text.replace("{stem}", output.path.stem)))


def _pictures(model: FloatModel, images: Images) -> UInt8[NDArray[np.uint8], "n h w c"] | None:
    """As bytes before any normalization; None where there are none."""
    spec = main_input(model.graph)
    if images.pictures is not None:
        return images.pictures
    if spec.image is None or spec.planes[0] not in CHANNELS:
        return None
    planes = images.pixels if spec.image == "first" else images.pixels.transpose(0, 3, 1, 2)
    if spec.is_bytes:
        return planes.transpose(0, 2, 3, 1)
    return None if model.normalization is None else model.normalization.inverted(planes)


def _why_none(model: FloatModel) -> str:
    spec = main_input(model.graph)
    if spec.image is None or spec.planes[0] not in CHANNELS:
        return f"the input {spec.name!r} takes no pictures"
    return f"nothing tells how pixels become what {spec.name!r} takes; --normalize says it"


def _tell_of_scale(output: Output, model: FloatModel, run: Run) -> None:
    """Tools that read pictures normalise them by numbers of their own."""
    if (normalization := model.normalization) is None:
        return
    mean, std = ([round(255 * number, 6) for number in part] for part in (normalization.mean, normalization.std))
    run.tell(
        Note(
            text=f"The PNG files in {output.handed[2]} hold bytes: a tool that calibrates on them has to subtract "
            f"{mean} and divide by {std}. The arrays are so already."
        )
    )
