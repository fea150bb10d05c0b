"""Conversion to a newer opset by onnx's converter, with the result compared in onnxruntime."""

from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.through_proto import through_proto
from onnxdfq.model_file.trial import run, same, try_out

# What onnx raises has no class in common.
_FAILURES = (
    RuntimeError,
    IndexError,
    ValueError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
)


def convert(model: ir.Model, path: Path, *, opset: int, compare: bool) -> ir.Model:
    """The model at `opset`; itself where it is of that opset or a newer one.

    Args:
        model: Read only.
        path: Of its file, for error messages.
        opset: To convert to.
        compare: Whether onnxruntime runs both and compares their outputs.

    Raises:
        ModelFileError: The converter fails, or changes what is computed.
    """
    old = model.opset_imports[""]
    if old >= opset:
        return model
    advice = f"export it again with opset {opset}"
    trial = try_out(model, 1) if compare else None
    try:
        converted = through_proto(model, lambda proto: _converted(proto, opset))
    except _FAILURES as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFileError(
            f"{path} could not be converted from opset {old} to {opset} ({reason}); {advice}."
        ) from error
    if old < 11:
        _keep_old_resize(converted)
    if trial is not None:
        found = run(converted, trial.feeds)
        if found is None or not same(found, trial.outputs):
            raise ModelFileError(
                f"{path} computes something else after conversion from opset {old} to {opset}; {advice}."
            )
    return converted


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    # Before IR 4 an initializer had to be an input as well, and the converter holds old files to that.
    proto.ir_version = max(proto.ir_version, 8)
    # Shapes inside are inferred again; the file's own may be stale, which runtimes overlook and the converter does not.
    inferred = {output for node in proto.graph.node if node.domain in ("", "ai.onnx") for output in node.output}
    kept = [value for value in proto.graph.value_info if value.name not in inferred]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return onnx.version_converter.convert_version(proto, opset)


def _keep_old_resize(model: ir.Model) -> None:
    """Upsample, and Resize before opset 11, meant output index / scale, rounded down; onnx's converter forgets that."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
