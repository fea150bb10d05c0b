"""Running models in ONNX Runtime on given images: accuracy, and how close a compressed model stays to its float one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from onnxdfq.errors import DataError, ModelFileError
from onnxdfq.evaluation.saturation import EXACT
from onnxdfq.images.dataset import Dataset, Normalization, load_dataset
from onnxdfq.model_file import constant_input, image_input, inputs, is_large, read_model
from onnxdfq.progress import Progress
from passes.write.provenance import read_provenance

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares are between 0 and 1; what could not be measured is None.

    top1: share of images whose arg-max over axis 1 of the first output is the label. agreement: share of equal arg-max
    between the model and its float original. sqnr_db: 10 log10 of signal over error energy, all float outputs together.
    Where the number of rows depends on the image (a detector's boxes) and the two models give different ones, that
    output of that batch is left out.
    """

    count: int
    top1: float | None = None
    top1_float: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None


class Session:
    """A model in ONNX Runtime, fed with batches of images; other inputs get constants.

    model: what `path` holds, if it is at hand already, or a version of it to run in its place. fuse: whether Quantize
    and Dequantize may become integer kernels; next to int2 weights they never do, for ONNX Runtime then makes kernels
    that it refuses itself. `fused` tells what came of it. Integer kernels compute exactly, on every processor; `exact`
    is false where ONNX Runtime cannot (int8 QLinear operators, whose own kernels are exact, in one file with others).
    Raises ModelFileError.
    """

    def __init__(self, path: Path, model: ir.Model | None = None, *, fuse: bool = True) -> None:
        given, model = model, read_model(path) if model is None else model
        self.path = path
        self.image = image_input(model)
        self.specs = inputs(model)
        self.normalization = read_provenance(model).get("norm")
        first = model.graph.outputs[0].shape if model.graph.outputs else None
        last = first[1] if first is not None and len(first) == 2 else None
        self.classes = last if isinstance(last, int) else None
        floats = [value for value in model.graph.outputs if value.dtype == ir.DataType.FLOAT]
        self.outputs = [value.name or "" for value in floats]
        self.output_shapes = [
            None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
            for value in floats
        ]
        if not self.outputs:
            raise ModelFileError(
                f"{path} has no float32 output, so there is nothing to compare; "
                "a float16 model has to be exported in float32."
            )
        source = path if given is None or is_large(given) else ir.to_proto(given).SerializeToString()
        self.fused = fuse and not any(value.dtype == ir.DataType.INT2 for value in model.graph.initializers.values())
        self.exact = True
        try:
            try:
                self._session = self._open(source)
            except Exception as error:  # onnxruntime's own exceptions share no base class but this
                if "QLinear" not in str(error):
                    raise
                self.exact = False
                self._session = self._open(source)
        except Exception as error:
            raise ModelFileError(f"ONNX Runtime refuses {path}: {_first_line(error)}") from error

    def _open(self, source: Path | bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # fatal only: faults are reported by exceptions
        if self.exact:
            options.add_session_config_entry(*EXACT)
        if not self.fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    @property
    def batch_size(self) -> int:
        """The model's fixed batch, or a good one."""
        return self.image.shape[0] or BATCH_SIZE

    def run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """pixels (N, C, H, W) in the model's input units → its float outputs, each (N, ...)."""
        batch = self.image.shape[0]
        padded = pixels
        if batch is not None and len(pixels) < batch:  # the last batch of a model with a fixed one
            padded = np.concatenate([pixels, np.repeat(pixels[-1:], batch - len(pixels), axis=0)])
        feeds = {
            spec.name: padded if spec.name == self.image.name else constant_input(spec, len(padded))
            for spec in self.specs
        }
        try:
            results = self._session.run(self.outputs, feeds)
        except Exception as error:  # as above
            raise DataError(f"{self.path} does not run on these images: {_first_line(error)}") from error
        arrays = [np.asarray(result) for result in results]
        # only what was padded is cut off: the first axis of an output need not be the batch
        return arrays if padded is pixels else [array[: len(pixels)] if array.ndim else array for array in arrays]


def load_evaluation_data(path: Path, session: Session, normalize: str | None) -> Dataset:
    """Images and labels for a model; normalised as `normalize` says, else as the model remembers. Raises DataError."""
    text = normalize or session.normalization
    normalization = None if text is None else Normalization.parse(text)
    return load_dataset(path, spec=session.image, normalization=normalization, classes=session.classes)


def evaluate(
    session: Session, data: Dataset, *, against: Session | None = None, progress: Progress | None = None
) -> Evaluation:
    """Run the model, and its float original `against` beside it, on all of `data`.

    Raises DataError when the images do not run, or the two models are not the same network.
    """
    right = right_float = equal = positions = done = 0
    signal = noise = 0.0
    classifies = False
    labels = data.labels
    size = session.batch_size if against is None else min(session.batch_size, against.batch_size)
    for pixels in data.batches(size):
        outputs = session.run(pixels)
        chosen = _arg_max(outputs[0])
        classifies = chosen.ndim == 1
        if labels is not None and classifies:
            right += int((chosen == labels[done : done + len(pixels)]).sum())
        if against is not None:
            expected = against.run(pixels)
            _check_same_network(session, outputs, against, expected)
            other = _arg_max(expected[0])
            if other.shape == chosen.shape:
                equal, positions = equal + int((chosen == other).sum()), positions + chosen.size
            if labels is not None and classifies:
                right_float += int((other == labels[done : done + len(pixels)]).sum())
            for value, reference in zip(outputs, expected, strict=True):
                if value.shape != reference.shape:
                    continue
                signal += float(np.square(reference, dtype=np.float64).sum())
                noise += float(np.square(value - reference, dtype=np.float64).sum())
        done += len(pixels)
        if progress is not None:
            progress(done, len(data), "evaluating")
    scored = labels is not None and classifies
    return Evaluation(
        count=done,
        top1=right / done if scored else None,
        top1_float=right_float / done if scored and against is not None else None,
        agreement=equal / positions if positions else None,
        sqnr_db=_decibel(signal, noise) if against is not None else None,
    )


def _check_same_network(
    session: Session, outputs: Sequence[NDArray[np.float32]], other: Session, others: Sequence[NDArray[np.float32]]
) -> None:
    """Raises DataError unless the outputs have equal shapes, but for sizes that the model itself leaves open."""
    if len(outputs) == len(others):
        pairs = zip(outputs, others, session.output_shapes, strict=True)
        if all(_fits(value.shape, reference.shape, declared) for value, reference, declared in pairs):
            return
    raise DataError(f"The outputs of {other.path} and {session.path} differ in shape; they are not the same network.")


def _fits(shape: tuple[int, ...], other: tuple[int, ...], declared: Sequence[int | None] | None) -> bool:
    if shape == other or len(shape) != len(other) or declared is None or len(declared) != len(shape):
        return shape == other
    return all(size == given or free is None for size, given, free in zip(shape, other, declared, strict=True))


def _arg_max(output: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N, K, ...) → (N, ...); trailing axes of size 1 are dropped, so that (N, K, 1, 1) classifies too."""
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output[..., 0]
    return np.asarray(output.argmax(axis=min(1, output.ndim - 1)))


def _decibel(signal: float, noise: float) -> float | None:
    """Infinite when nothing differs, which JSON cannot say: None then."""
    return 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
