"""The images, or other samples, that numbers are decided by: the method's, or the user's own."""

from dataclasses import asdict, replace

from onnxdfq.images.dataset import load_data
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.images import Images
from onnxdfq.images.source import FixedImages, ImageSource
from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run
from onnxdfq.model_file import fillings
from onnxdfq.pipeline.request import Request
from onnxdfq.synthesis.quality import evaluate_images
from passes.graph.batch_norm import read_batch_norms


def make_images(model: FloatModel, method: Method, request: Request, run: Run) -> ImageSource | None:
    """Where images come from; None where nothing is decided by images. They are made, or read, here.

    Raises:
        DataError: The user's own do not fit.
        NoBatchNorm, ShapeError: They cannot be made.
    """
    source = method.images(model, run) if request.calibration is None else _own(model, request)
    if source is None:
        return None
    source = _Completed(source, model, run)
    images = source.fixed(run.image_count)
    run.tell(Measurement(values={"images": len(images)}))
    if read_batch_norms(model.graph):
        run.tell(Measurement(values=asdict(evaluate_images(model.graph, images, device=run.device))))
    return source


class _Completed(FixedImages):
    """Images of a source, with what the model's other inputs are fed beside them, which is told."""

    def __init__(self, source: ImageSource, model: FloatModel, run: Run) -> None:
        super().__init__(self._complete)
        self._source, self._model, self._run = source, model, run

    def _complete(self, count: int) -> Images:
        images, feeding = self._source.fixed(count), Feeding(self._model.graph)
        found = fillings(self._model.graph)
        others = dict(images.others)
        for spec in feeding.others:
            if spec.name in others:
                continue
            others[spec.name] = found[spec.name].draw(spec, len(images), self._run.recipe.seed)
            text = f"The input {spec.name!r} ({spec.dtype.name.lower()} {spec.text() or 'scalar'}) is fed "
            advice = f"--input {spec.name}=... and --calibration say otherwise."
            self._run.tell(Note(text=f"{text}{found[spec.name].sentence}; {advice}"))
        return replace(images, others=others)


def _own(model: FloatModel, request: Request) -> FixedImages:
    feeding = Feeding(model.graph)

    def read(count: int) -> Images:
        data = load_data(
            request.calibration,
            spec=feeding.main,
            others=feeding.others,
            normalization=model.normalization,
            limit=count,
        )
        samples = next(data.samples(count))
        return Images(pixels=samples.main, others=samples.others, method="file", seed=request.recipe.seed)

    return FixedImages(read)
