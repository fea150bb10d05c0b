"""Models as files: with shapes, checked, and in two files where one does not hold them."""

from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdfq.errors import OutputError
from onnxdfq.model_file.through_proto import float_bytes, infer_shapes, weight_bytes
from onnxdfq.model_file.unshaped import all_shaped
from onnxdfq.model_file.writing import Staged, staging

# Protobuf ends at 2**31 bytes. The margin is for everything in the file that is not a weight.
INLINE_LIMIT = 2**31 - 2**26


def is_large(model: ir.Model) -> bool:
    """Whether the weights exceed one protobuf, so that they have to lie in a file of their own."""
    return weight_bytes(model) > INLINE_LIMIT


def runs_lean(model: ir.Model) -> bool:
    """Whether ONNX Runtime is to hold no second copy of its weights (`lean_options`), nor two such networks at once."""
    return float_bytes(model) > INLINE_LIMIT


def save_model(model: ir.Model, path: Path, *, force: bool = False, inner_shapes: bool = True) -> None:
    """Writes the model with inferred shapes, after onnx.checker (full check) and strict shape inference pass.

    Weights that are beyond 2 GB, or would be in float32, go to `<name>.data` beside it.

    Args:
        model: Gains the inferred shapes and stays the same otherwise.
        path: Of the file to write.
        force: Whether an existing file may be replaced.
        inner_shapes: Whether the file holds the shapes of inner values, which viewers show and loaders infer; a large
            model's file always does.

    Raises:
        OutputError: As `atomic_write` does, and with exit code 1 where the model is not valid ONNX.
    """
    with staging(force=force) as staged:
        stage_model(model, path, staged, inner_shapes=inner_shapes)


def stage_model(
    model: ir.Model, path: Path, staged: Staged, *, inner_shapes: bool = True, inferred: bool = True
) -> None:
    """`save_model`, as one of several files that take their places together.

    Args:
        model, path, inner_shapes: As for `save_model`.
        staged: Where it is written.
        inferred: Whether shapes are inferred; a file of the user's keeps those that it has.

    Raises:
        OutputError: As `save_model` does.
    """
    with staged.file(path) as temporary:
        try:
            if inferred:
                infer_shapes(model, strict=True)
            if runs_lean(model):
                with staged.file(path.with_name(path.name + ".data")) as data:
                    ir.save(model, temporary, external_data=data.name)
                    onnx.checker.check_model(temporary, full_check=True)
                return
            proto = ir.to_proto(_in_memory(model))
            with all_shaped(proto):
                onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _invalid(path, error) from error
        if not inner_shapes:
            del proto.graph.value_info[:]
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _in_memory(model: ir.Model) -> ir.Model:
    """The model with the external data that it has left: what is written refers to no file of the source."""
    found = {name: value.const_value for name, value in model.graph.initializers.items()}
    external = {name: tensor for name, tensor in found.items() if isinstance(tensor, ir.ExternalTensor)}
    if not external:
        return model
    copy = model.clone()
    for name, tensor in external.items():
        (copy.graph.initializers[name].const_value,) = ir.external_data.convert_tensors_from_external([tensor])
    return copy


def _invalid(path: Path, error: Exception) -> OutputError:
    first_line = str(error).strip().splitlines()[0]
    return OutputError(f"{path} was not written, because the model is not valid ONNX: {first_line}", exit_code=1)
