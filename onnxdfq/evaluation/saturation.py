"""Whether the processor at hand computes integer layers as their file says, and what to tell of a file where not."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from onnxdfq.model_file import read_model
from onnxdfq.targets import load_target
from passes.lint.lint import lint

EXACT = ("session.x64quantprecision", "1")
"""ONNX Runtime's session option (x86-64; elsewhere it changes nothing) for kernels that add in 32 bits."""
NAMED = 3  # layers that a note names


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's kernels for uint8 times int8 saturate here: asked of the kernel itself."""
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 2]),
        helper.make_tensor_value_info("w", onnx.TensorProto.INT8, [2, 1]),
    ]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 1])
    graph = helper.make_graph([helper.make_node("MatMulInteger", ["x", "w"], ["y"])], "probe", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(None, {"x": np.full((1, 2), 255, np.uint8), "w": np.full((2, 1), 127, np.int8)})
    return int(np.asarray(product)[0, 0]) != 2 * 255 * 127


def saturation_note(path: Path, *, exact: bool) -> str | None:
    """A sentence about the model at `path` where its layers saturate on this processor; None where none does.

    exact: whether the figures that it goes with were computed exactly all the same.
    """
    if not saturates():
        return None
    model = read_model(path, inferred=True)
    layers = [finding.node for finding in lint(model, load_target("ort")) if not finding.exact]
    if not layers:
        return None
    several = "a layer" if len(layers) == 1 else f"{len(layers)} layers"
    named = ", ".join(layers[:NAMED]) + (", ..." if len(layers) > NAMED else "")
    figures = (
        "these figures are computed exactly, and ONNX Runtime's default here gives worse ones"
        if exact
        else "these figures are what the saturating kernels give"
    )
    return (
        f"This processor saturates in {several} of {path.name} ({named}): {figures}. Compress with onnxdfq "
        f"--target ort, on whose weights no processor does, or set ONNX Runtime's session option {'='.join(EXACT)}."
    )
