"""Loading: from an untrusted file to a float model of opset 21 to 25 that runs at any batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.checks import refuse_not_finite, refuse_quantized
from onnxdfq.model_file.convert import convert
from onnxdfq.model_file.free_batch import free_batch
from onnxdfq.model_file.inputs import fix_input_shapes
from onnxdfq.model_file.through_proto import CARRIED_INLINE, infer_shapes
from onnxdfq.model_file.untrusted import read_proto, refuse_ill_formed
from onnxdfq.model_file.writing import is_large
from passes.graph.editing import name_of

OLDEST_OPSET, OPSET, NEWEST_OPSET = 7, 21, 25

# The IR version that came with each opset: onnxruntime refuses files whose IR is newer than it knows.
_IR_VERSION = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


def load_model(path: Path | str, *, input_shape: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """A float model to compress: checked, opset 21 to 25, simplified once with BatchNormalization kept, batch free.

    Values and nodes that remain keep the file's names. Where weights exceed 2 GB they stay on the disk until used, and
    the model is neither simplified nor its batch freed, for both need the whole model in one protobuf.

    Args:
        path: Of the file.
        input_shape: By input name ("" for the image input), for inputs whose sizes the file leaves open.

    Raises:
        ModelFileError: The file cannot be read, is damaged, or is of an opset that is not read.
        AlreadyQuantized: It holds quantized operators.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
        ShapeError: An input's sizes stay open, or `input_shape` contradicts them.
    """
    return prepare_model(read_float_model(path, input_shape=input_shape), path)


def read_float_model(path: Path | str, *, input_shape: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """What `load_model` begins with: every check that needs nothing but the file, before anything slow is imported.

    Args:
        path: Of the file.
        input_shape: As for `load_model`.

    Returns:
        Of the file's own opset, its constants all initializers.

    Raises:
        ModelFileError, AlreadyQuantized, UnsupportedOperator, ShapeError: As `load_model` does.
    """
    path = Path(path)
    proto = read_proto(path)
    _check_opset(proto, path)
    model = _parsed(proto, path)
    refuse_quantized(model, path)
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    _tell_nodes_apart(model)
    _load_external_data(model, keep_large=is_large(model))
    refuse_not_finite(model, path)
    fix_input_shapes(model, input_shape)
    return model


def prepare_model(model: ir.Model, path: Path | str) -> ir.Model:
    """What `load_model` ends with: the model of `read_float_model` converted, simplified, and its batch freed.

    Args:
        model: Is used up.
        path: Of its file, for error messages.

    Raises:
        ModelFileError: It cannot be converted.
    """
    path, large = Path(path), is_large(model)
    model = convert(model, path, opset=OPSET, compare=not large)
    model.ir_version = _IR_VERSION[model.opset_imports[""]]
    if not large:
        model = free_batch(model)
    infer_shapes(model, strict=False)
    return model


def read_model(path: Path | str) -> ir.Model:
    """Any model unchanged, quantized ones too, after the safety checks: for `inspect`, `lint` and `evaluate`.

    Raises:
        ModelFileError: The file cannot be read or is damaged.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
    """
    path = Path(path)
    model = _parsed(read_proto(path), path)
    _load_external_data(model, keep_large=is_large(model))
    return model


def _tell_nodes_apart(model: ir.Model) -> None:
    """Renames all but the first of several nodes of one name: onnx allows these, onnxruntime refuses the file."""
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        name, count = name_of(node), 0
        while node.name and node.name in seen:
            count += 1
            node.name = f"{name}_{count}"
        seen.add(name_of(node))


def _parsed(proto: onnx.ModelProto, path: Path) -> ir.Model:
    refuse_ill_formed(path, proto)
    try:
        model = ir.from_proto(proto)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(f"{path} is not a valid ONNX model: {error.__cause__ or error}") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    return model


def _load_external_data(model: ir.Model, *, keep_large: bool) -> None:
    """Loads external data into memory; with `keep_large` not the weights that `through_proto` keeps out of protobuf."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            kept = keep_large and graph is model.graph
            if isinstance(tensor, ir.ExternalTensor) and not (kept and tensor.nbytes > CARRIED_INLINE):
                value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if opset is None:
        raise ModelFileError(f"{path} imports no ONNX operators (domain 'ai.onnx'); opset 7 to 25 is needed.")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelFileError(
            f"{path} has opset {opset}, and opset {OLDEST_OPSET} to {NEWEST_OPSET} is read; "
            f"export it again with opset {OPSET}."
        )
