"""The images that numbers are decided by: the method's, or the user's own."""

from dataclasses import asdict

import numpy as np

from onnxdfq.images.dataset import load_data
from onnxdfq.images.images import Images
from onnxdfq.images.source import FixedImages, ImageSource
from onnxdfq.methods.method import FloatModel, Measurement, Method, Run
from onnxdfq.model_file import image_input
from onnxdfq.pipeline.request import Request
from onnxdfq.synthesis.quality import evaluate_images
from passes.graph.batch_norm import read_batch_norms


def make_images(model: FloatModel, method: Method, request: Request, run: Run) -> ImageSource | None:
    """Where images come from; None where nothing is decided by images. They are made, or read, here.

    Raises:
        DataError: the user's own do not fit. NoBatchNorm, ShapeError: they cannot be made.
    """
    source = method.images(model, run) if request.calibration is None else _own(model, request)
    if source is None:
        return None
    images = source.fixed(run.image_count)
    run.tell(Measurement(values={"images": len(images)}))
    if read_batch_norms(model.graph):
        run.tell(Measurement(values=asdict(evaluate_images(model.graph, images, device=run.device))))
    return source


def _own(model: FloatModel, request: Request) -> FixedImages:
    spec = image_input(model.graph)

    def read(count: int) -> Images:
        data = load_data(request.calibration, spec=spec, normalization=model.normalization, limit=count)
        pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = next(data.batches(count))
        return Images(pixels=pixels, method="file", seed=request.recipe.seed)

    return FixedImages(read)
