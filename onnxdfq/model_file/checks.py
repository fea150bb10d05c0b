"""What a file may hold and still be of no use here: quantized, not finite, not valid."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxdfq.errors import AlreadyQuantized, ModelFileError, UnsupportedOperator
from onnxdfq.model_file.through_proto import without_weights

_QUANTIZED_PREFIXES = ("QLinear", "DynamicQuantize", "QGemm", "QAttention", "QMoE", "QOrdered")
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MatMulBnb4",
    "FakeQuant",
}
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

# Where an infinity is ordinary: bounds, padding and masks. Anywhere else it is a broken weight.
_TAKES_INFINITY = {"Clip", "Max", "Min", "Pad", "Where", "Expand", "ConstantOfShape", "ScatterND", "ScatterElements"}
_CHUNK = 1 << 22


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Raises AlreadyQuantized that names the first such node."""
    found = [
        node for node in _all_nodes(model) if node.op_type in _QUANTIZED or node.op_type.startswith(_QUANTIZED_PREFIXES)
    ]
    if found:
        node = found[0]
        raise AlreadyQuantized(
            f"{path} is already quantized: it holds {len(found)} such nodes, the first {node.op_type} "
            f"{node.name or node.outputs[0].name!r}; give the float model that it was made from."
        )


def refuse_not_finite(model: ir.Model, path: Path) -> None:
    """Raises ModelFileError that names the first tensor with NaN, or with an infinity where none belongs."""
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _FLOATS:
            continue
        has_nan, has_plus, has_minus = _not_finite(tensor)
        users = {use.node.op_type for use in value.uses()}
        # An attention mask is added, has rows and columns, and reaches down only; a bias has one axis.
        mask = {"Add"} if has_minus and not has_plus and len(tensor.shape) > 1 else set()
        if has_nan or ((has_plus or has_minus) and not users <= _TAKES_INFINITY | mask):
            what = "NaN" if has_nan else "infinity"
            raise ModelFileError(
                f"{path}: tensor {value.name!r} holds {what}, so the model cannot work; "
                "export it again from good weights."
            )


def refuse_invalid(model: ir.Model, path: Path) -> None:
    """Raises UnsupportedOperator for an operator that ONNX does not know, ModelFileError for an ill-formed graph."""
    opset = model.opset_imports[""]
    for node in _all_nodes(model):
        if node.domain in ("", "ai.onnx") and not _known(node.op_type, opset):
            raise UnsupportedOperator(
                f"{path}: ONNX opset {opset} has no operator {node.op_type} (domain 'ai.onnx'), which node "
                f"{node.name or node.outputs[0].name!r} uses."
            )
    try:
        onnx.checker.check_model(without_weights(model)[0])
    except onnx.checker.ValidationError as error:
        raise ModelFileError(f"{path} is not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error


def _known(op_type: str, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(op_type, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _not_finite(tensor: ir.TensorProtocol) -> tuple[bool, bool, bool]:
    """Whether the tensor holds NaN, +inf, -inf; in chunks, so that a lazily loaded weight is never copied whole."""
    flat = tensor.numpy().reshape(-1)
    has_nan = has_plus = has_minus = False
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        part = part.astype(np.float32) if part.dtype.itemsize < 4 else part
        if np.isfinite(part).all():
            continue
        has_nan |= bool(np.isnan(part).any())
        has_plus |= bool((part == np.inf).any())
        has_minus |= bool((part == -np.inf).any())
    return has_nan, has_plus, has_minus
