"""A model in ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from jaxtyping import Shaped
from numpy.typing import NDArray

from onnxdfq.errors import DataError, ModelFileError
from onnxdfq.evaluation.saturation import EXACT
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.samples import Samples, SamplesLike
from onnxdfq.model_file import Opened, read_model
from onnxdfq.model_file.reference import as_types
from onnxdfq.model_file.runtime import lean_options, reads_beside, reason_of, session_options
from onnxdfq.model_file.saving import runs_lean
from onnxdfq.model_file.through_proto import infer_shapes
from passes.graph.compared import FLOATS, answer_output, compared_values, is_float
from passes.graph.editing import is_op
from passes.graph.parts import parts_of
from passes.write.provenance import read_provenance

BATCH_SIZE = 64


class Session:
    """A model in ONNX Runtime, fed with batches of samples; inputs that these lack get what suits them.

    Integer kernels compute exactly, on every processor. A network that hardly fits into memory is loaded anew for each
    run, and leaves it then; nothing of it is fused.

    Args:
        path: Of the model, for error messages and for weights that lie beside it.
        model: A version of it, which runs in its place.
        original: The file as it was opened. Its `model` only tells what goes in and comes out: what runs is the file
            itself, wherever it runs.
        called: What error messages call it where that is not `path`.
        fuse: Whether Quantize and Dequantize may become integer kernels; next to int2 weights they never do, for ONNX
            Runtime then makes kernels that it refuses itself.
        lean: Whether it is loaded anew for each run; by default, where its weights are too large for anything else.

    Attributes:
        main, others: The inputs.
        fused: What came of `fuse`.
        exact: False where ONNX Runtime cannot compute exactly (int8 QLinear operators, whose own kernels are exact, in
            one file with others), or has nothing to (integers in blocks, which its option for that makes invalid).
        lean: Whether it hardly fits into memory.
        answer: Name of the output that tells classes apart: integers (N, ...) or scores (N, K); None where none does.
        parts: Of each compared value, where its parts lie that a Concat put together; None where none did.
        classes: How many the model tells apart, None where it is no classifier.

    Raises:
        ModelFileError: ONNX Runtime refuses the model, or it computes no float.
    """

    def __init__(
        self,
        path: Path,
        model: ir.Model | None = None,
        *,
        original: Opened | None = None,
        called: Path | None = None,
        fuse: bool = True,
        lean: bool | None = None,
    ) -> None:
        self.path, self._file = called or path, path
        if original is not None:
            model = original.model
        given, model = model, self._read(path) if model is None else model
        self._original = original if original is not None and original.reference.own else None
        self._feeding = Feeding(model)
        if self._original is not None:
            self._feeding.batch = self._original.reference.batch
        self.main, self.others = self._feeding.main, self._feeding.others
        self.normalization = read_provenance(model).get("norm")
        outputs = model.graph.outputs
        if not all(map(is_float, outputs)):
            model = model.clone()
            infer_shapes(model, strict=False)
        values = compared_values(model.graph)
        if not values:
            raise ModelFileError(f"{self.path} computes no floating-point value, so there is nothing to compress.")
        place = answer_output(model.graph)
        answer = None if place is None else model.graph.outputs[place]
        last = answer.shape[1] if answer is not None and answer.shape is not None and len(answer.shape) > 1 else None
        self.classes = last if isinstance(last, int) and answer is not None and answer.dtype in FLOATS else None
        self.outputs = [value.name or "" for value in values]
        self.parts = [parts_of(value) for value in values]
        self.answer = None if answer is None else answer.name
        self.output_shapes = [
            None if value.shape is None else [size if isinstance(size, int) else None for size in value.shape]
            for value in values
        ]
        inner = [value for value in values if value not in model.graph.outputs]
        if self._original is not None:
            self._source = self._original.file
        else:
            if inner:
                given = model = model.clone()
                names = {value.name: value for node in model.graph for value in node.outputs}
                model.graph.outputs.extend(names[value.name] for value in inner)
            self._source = path if given is None else ir.to_proto(given).SerializeToString()
        self.lean = runs_lean(model) if lean is None else lean
        self.fused = fuse and not any(value.dtype == ir.DataType.INT2 for value in model.graph.initializers.values())
        self.exact = not any(_is_int8_in_blocks(node) for node in model.graph)
        try:
            try:
                session = self._open()
            except Exception as error:  # onnxruntime's own exceptions share no base class but this
                if "QLinear" not in str(error):
                    raise
                self.exact = False
                session = self._open()
        except Exception as error:
            reason = reason_of(error).replace(str(path), str(self.path))
            raise ModelFileError(f"ONNX Runtime refuses {self.path}: {reason}") from error
        self._present = {value.name for value in session.get_outputs()}
        self._session = None if self.lean else session

    def _read(self, path: Path) -> ir.Model:
        try:
            return read_model(path, run=True)
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(path), str(self.path))) from error

    def _open(self) -> ort.InferenceSession:
        options = lean_options() if self.lean else session_options()
        if self.exact:
            options.add_session_config_entry(*EXACT)
        if not self.fused and not self.lean:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if isinstance(self._source, bytes):
            reads_beside(options, self._file)
        return ort.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])

    def batch_size(self, samples: SamplesLike) -> int:
        """The model's fixed batch, or a good one for these samples."""
        return self._feeding.run_size(samples, BATCH_SIZE)

    def run(self, samples: SamplesLike) -> list[Shaped[NDArray[Any], "..."]]:
        """The compared values for samples that run together, each as a rule (N, ...).

        Args:
            samples: In the model's input units; repeated where they do not fill the model's one batch, and cut off
                again.

        Raises:
            DataError: The model does not run on them.
        """
        return self._run(samples, self.outputs)

    def run_with_answers(
        self, samples: SamplesLike, answer: str | None
    ) -> tuple[list[Shaped[NDArray[Any], "..."]], Shaped[NDArray[Any], "..."] | None]:
        """`run`, and one output that tells classes apart.

        Args:
            samples: As for `run`.
            answer: Name of that output: `answer`, or that of the model's float original, which shows it more clearly.
        """
        if answer is None or answer in self.outputs:
            values = self.run(samples)
            return values, None if answer is None else values[self.outputs.index(answer)]
        *values, found = self._run(samples, [*self.outputs, answer])
        return values, found

    def answer_like(self, other: str | None) -> str | None:
        """The output of this name, or its own `answer` where it has none of that name: another network has others."""
        return other if other in self._present else self.answer

    def _run(self, samples: SamplesLike, names: list[str]) -> list[Shaped[NDArray[Any], "..."]]:
        given, batch = Samples.of(samples), self._feeding.batch
        count = len(given)
        short = 0 if batch is None else max(batch - count, 0)
        if short:  # the last batch of a model with a fixed one
            rows = np.minimum(np.arange(count + short), count - 1)
            given = Samples(main=given.main[rows], others={name: array[rows] for name, array in given.others.items()})
        try:
            results = (self._session or self._open()).run(names, self._fed(given))
        except Exception as error:  # as above
            raise DataError(f"{self.path} does not run on these samples: {reason_of(error)}") from error
        arrays = [np.asarray(result) for result in results]
        if self._original is not None:  # of a file of float16
            arrays = [array.astype(np.float32) if array.dtype.kind == "f" else array for array in arrays]
        # only what was padded is cut off: the first axis of an output need not be the batch
        return [array[:count] if array.ndim else array for array in arrays] if short else arrays

    def _fed(self, samples: Samples) -> dict[str, NDArray[np.generic]]:
        arrays = self._feeding.arrays(samples)
        return arrays if self._original is None else as_types(arrays, self._original.reference.types)


def _is_int8_in_blocks(node: ir.Node) -> bool:
    """What ONNX Runtime's option for exact kernels makes unsigned, with a zero point that it then refuses itself."""
    return (
        is_op(node, "DequantizeLinear")
        and node.attributes.get_int("block_size", 0) > 0
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.INT8
    )
