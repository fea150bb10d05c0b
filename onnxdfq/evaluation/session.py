"""A model in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.errors import DataError, ModelFileError
from onnxdfq.evaluation.saturation import EXACT
from onnxdfq.model_file import constant_input, image_input, inputs, is_large, read_model
from passes.write.provenance import read_provenance

BATCH_SIZE = 64


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

    def run(self, pixels: Float32[NDArray[np.float32], "n ..."]) -> list[Float32[NDArray[np.float32], "..."]]:
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
