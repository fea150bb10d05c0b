"""From an untrusted file to a float model of opset 21 to 25 that runs at any batch: what a process apart does."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.checks import (
    refuse_broken_norms,
    refuse_empty,
    refuse_not_finite,
    refuse_quantized,
    refuse_text,
    refuse_wild_flags,
)
from onnxdfq.model_file.convert import convert
from onnxdfq.model_file.declared import declare_shapes, fix_declared_sizes, runs_at_other_sizes, with_declared_sizes
from onnxdfq.model_file.filling import set_fillings
from onnxdfq.model_file.free_batch import free_batch
from onnxdfq.model_file.ordering import sort_nodes
from onnxdfq.model_file.saving import is_large, runs_lean
from onnxdfq.model_file.sizes import fix_input_shapes, forget_placeholders
from onnxdfq.model_file.sparse import write_out_sparse
from onnxdfq.model_file.through_proto import CARRIED_INLINE, infer_shapes
from onnxdfq.model_file.to_float32 import to_float32
from onnxdfq.model_file.uncached import UncachedTensor
from onnxdfq.model_file.untrusted import load_inner_data, read_proto, refuse_ill_formed
from passes.graph.editing import name_of

OLDEST_OPSET, OPSET, NEWEST_OPSET = 7, 21, 25
CONVERTED = "onnxdfq.converted_from"
"""Metadata of a model that was of another float type."""
REPAIRED = "onnxdfq.repaired"
"""Metadata of a model that computes something else than its file does in ONNX Runtime, and why that is right."""

# The IR version that came with each opset: onnxruntime refuses files whose IR is newer than it knows.
_IR_VERSION = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


def read_float_model(
    path: Path | str,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Sequence[int]] | None = None,
    fed: Mapping[str, str] | None = None,
) -> ir.Model:
    """What `load_model` begins with: every check that needs nothing but the file.

    Args:
        path: Of the file.
        input_shape, data, fed: As for `load_model`.

    Returns:
        Of the file's own opset, its constants all initializers.

    Raises:
        ModelFileError, AlreadyQuantized, UnsupportedOperator, ShapeError, InputError: As `load_model` does.
    """
    path = Path(path)
    proto = read_proto(path)
    _check_opset(proto, path)
    model = _parsed(proto, path)
    refuse_quantized(model, path)
    refuse_text(model, path)
    refuse_wild_flags(model, path)
    inline_functions(model, path)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    _tell_nodes_apart(model)
    if _drop_unused_outputs(model):
        model.metadata_props[REPAIRED] = "Its BatchNormalizations have outputs of training that nothing reads."
    _load_external_data(model, keep_large=is_large(model))
    _write_raw(model)
    refuse_not_finite(model, path)
    refuse_broken_norms(model, path)
    if (gone := to_float32(model)) is not None:
        model.metadata_props[CONVERTED] = gone
    forget_placeholders(model)
    set_fillings(model, fed or {})
    declare_shapes(model)
    fix_input_shapes(model, input_shape, data)
    return model


def prepare_model(model: ir.Model, path: Path | str) -> ir.Model:
    """What `load_model` ends with: the model of `read_float_model` converted, simplified, and its batch freed.

    Args:
        model: Is used up.
        path: Of its file, for error messages.

    Raises:
        ModelFileError: It cannot be converted, or a node contradicts its inputs.
        ShapeError: A layer of it computes on no numbers, or it runs at one batch only and nothing tells where that is.
    """
    path, large = Path(path), is_large(model)
    opened = with_declared_sizes(model)
    model = convert(model, path, opset=OPSET, compare=not large)
    model.ir_version = _IR_VERSION[model.opset_imports[""]]
    if not large:
        model = free_batch(model)
    if opened is not None and (large or not runs_at_other_sizes(model, opened)):
        fix_declared_sizes(model)
    infer_shapes(model, strict=False)
    refuse_empty(model, path)
    try:
        infer_shapes(model, strict=True)
    except onnx.shape_inference.InferenceError as error:  # which nothing made of it passes, either
        line = str(error).strip().splitlines()[0]
        raise ModelFileError(f"{path} is refused by ONNX's shape inference: {line}") from error
    return model


def read_any_model(path: Path) -> ir.Model:
    """What `read_model` gives.

    Raises:
        ModelFileError: The file cannot be read or is damaged.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
    """
    model = _parsed(read_proto(path), path)
    _load_external_data(model, keep_large=runs_lean(model))
    return model


def inline_functions(model: ir.Model, path: Path) -> None:
    """Puts the bodies of functions in the place of their calls, in place.

    A function that is called as one of ONNX's own operators goes without: runtimes compute that operator.

    Args:
        model: Edited in place.
        path: Of its file, for error messages.

    Raises:
        ModelFileError: A body is of another opset than the model, takes graphs, or has fewer inputs than a call.
    """
    opset = model.opset_imports.get("", 0)
    for identifier in list(model.functions):
        domain, name, _ = identifier
        if domain == "" and onnx.defs.has(name, opset):
            del model.functions[identifier]
    if model.functions:
        try:
            common.InlinePass()(model)
        except (ValueError, ir.passes.PassError) as error:
            raise ModelFileError(f"{path}: a function cannot take the place of its call: {error}") from error


def _drop_unused_outputs(model: ir.Model) -> int:
    """Optional outputs of an old BatchNormalization that nothing reads go. How many.

    onnx's converter stumbles over them, and ONNX Runtime takes them for a wish to train.
    """
    count = 0
    for node in model.graph.all_nodes():
        kept = len(node.outputs)
        while kept > 1 and not (node.outputs[kept - 1].uses() or node.outputs[kept - 1].is_graph_output()):
            kept -= 1
        in_training = node.attributes.get_int("training_mode", 0)
        if node.op_type == "BatchNormalization" and kept < len(node.outputs) and not in_training:
            node.resize_outputs(kept)
            count += 1
    return count


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
    sort_nodes(proto)
    refuse_ill_formed(path, proto)
    load_inner_data(path, proto)
    write_out_sparse(path, proto)
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
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            if keep_large and graph is model.graph and tensor.nbytes > CARRIED_INLINE:
                value.const_value = UncachedTensor.of(tensor, tensor.base_dir)
            else:
                value.const_value = ir.external_data.convert_tensors_from_external([tensor])[0]


def _write_raw(model: ir.Model) -> None:
    """Numbers that lie in one of protobuf's lists are laid down as bytes, which is all that onnxsim reads of some."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.TensorProtoTensor) and not tensor.raw.HasField("raw_data"):
                with suppress(ValueError, TypeError):  # a damaged one is refused next, with its name
                    value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), None)
    if opset is None:
        raise ModelFileError(f"{path} imports no ONNX operators (domain 'ai.onnx'); opset 7 to 25 is needed.")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ModelFileError(
            f"{path} has opset {opset}, and opset {OLDEST_OPSET} to {NEWEST_OPSET} is read; "
            f"export it again with opset {OPSET}."
        )
