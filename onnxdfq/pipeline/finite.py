"""What was written holds and computes numbers: no NaN, and no infinity but those of the float model."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxdfq.errors import OutputError
from onnxdfq.evaluation import Evaluation
from onnxdfq.pipeline.request import Output
from passes.graph.compared import FLOATS

ADVICE = "try another --method, more bits, or --calibration with inputs of your own"


def check_tensors(output: Output, written: ir.Model, source: ir.Model) -> None:
    """Raises OutputError where a tensor of the written graph holds NaN, or infinity that the float one does not."""
    bounds = {name for name, tensor in _floats(source) if np.isinf(tensor.numpy()).any()}
    for name, tensor in _floats(written):
        array = tensor.numpy()
        if np.isnan(array).any() or (name not in bounds and np.isinf(array).any()):
            raise OutputError(
                f"{output.path} was not written, because the tensor {name!r} of the file for {output.target.name} came "
                f"out as NaN or infinity; {ADVICE}.",
                exit_code=1,
            )


def check_outputs(output: Output, found: Sequence[Evaluation]) -> None:
    """Raises OutputError where the file computed NaN or infinity and the float network did not."""
    if any(one.not_finite for one in found):
        raise OutputError(
            f"{output.path} was not written, because the file for {output.target.name} computes NaN or infinity where "
            f"the float model does not; {ADVICE}.",
            exit_code=1,
        )


def _floats(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    """Names and tensors of all initializers of floating point."""
    found = ((value.name or "", value.const_value) for graph in model.graphs() for value in graph.initializers.values())
    return [(name, tensor) for name, tensor in found if tensor is not None and tensor.dtype in FLOATS]
