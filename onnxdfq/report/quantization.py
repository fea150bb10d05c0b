"""How a file is quantized, by this tool or by another: in which form, with how many bits and what scales."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_constant, rank
from passes.quantize.grid import is_power_of_two
from passes.write.provenance import read_provenance

Constant = Shaped[NDArray[np.generic], "..."]

QDQ, OPERATORS, DYNAMIC, WEIGHT_ONLY = "QDQ", "operators on integers", "dynamic", "weight-only"
# ONNX's, and ONNX Runtime's own. Dynamic ones find the scales of activations while they run.
_DYNAMIC = ("DynamicQuantize", "ConvInteger", "MatMulInteger")
_OPERATORS = ("QLinear", "QGemm", "QAttention")
_PACKED = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")  # several numbers to a byte; attributes say how many


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A quantized tensor.

    weight: or an activation. scale, zero: None where the file computes them, or where there is none. per: what has a
    scale of its own.
    """

    bits: int
    weight: bool
    scale: Constant | None
    zero: Constant | None
    per: str = "tensor"


def quantization(model: ir.Model) -> dict[str, int | bool | str | list[int] | list[str]]:
    """What the file says about its quantization, bodies of If and Loop included; empty for a float model.

    Returns:
        form: "QDQ", "operators on integers" (QLinearConv), "dynamic" (DynamicQuantizeLinear, ConvInteger),
            "weight-only" (MatMulNBits), or several.
        by: onnxdfq, or the producer that the file names.
        activations, weights: how many tensors; biases are not counted. Dynamic activations are counted where a
            DynamicQuantizeLinear quantizes them.
        activation_bits, weight_bits: of the element types; fewer may be in use.
        weights_per: what has a scale of its own: "tensor", "channel", "block of N".
        zero_points: whether one differs from zero. power_of_two: whether all scales are known and powers of two.
    """
    found = [(form, tensor) for node in model.graph.all_nodes() for form, tensor in _tensors(node)]
    if not found:
        return {}
    forms = dict.fromkeys(form for form, _ in found)
    if len(forms) > 1 and not any(form == QDQ and tensor is not None and tensor.weight for form, tensor in found):
        forms.pop(QDQ, None)  # it only leads in and out
    tensors = [tensor for _, tensor in found if tensor is not None]
    weights = [tensor for tensor in tensors if tensor.weight]
    activations = [tensor for tensor in tensors if not tensor.weight]
    dynamic = DYNAMIC in forms
    return {
        "form": " and ".join(forms),
        "by": "onnxdfq" if "bits" in read_provenance(model) else model.producer_name or "a tool that gives no name",
        "activations": len(activations),
        "activation_bits": sorted({tensor.bits for tensor in activations}),
        "weights": len(weights),
        "weight_bits": sorted({tensor.bits for tensor in weights}),
        "weights_per": sorted({tensor.per for tensor in weights}),
        "zero_points": dynamic or any(t.zero is not None and bool(np.any(t.zero != 0)) for t in tensors),
        "power_of_two": not dynamic
        and all(tensor.scale is not None and is_power_of_two(tensor.scale.astype(np.float32)) for tensor in tensors),
    }


def _tensors(node: ir.Node) -> Iterator[tuple[str, _Tensor | None]]:
    """What `node` shows to be quantized, with the form of quantization; no tensor where it only shows the form."""
    if node.op_type == "QuantizeLinear":
        yield QDQ, _of_pair(node, node.outputs[0], weight=is_constant(node.inputs[0]))
    elif node.op_type == "DequantizeLinear":
        # one behind a QuantizeLinear is told there; a vector is a bias
        stands = constant_value(node.inputs[0])
        yield QDQ, _of_pair(node, node.inputs[0], weight=True) if stands is not None and stands.ndim > 1 else None
    elif node.op_type in _PACKED:
        bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 0)
        scale, zero = (constant_value(_input(node, index)) for index in (2, 3))
        if zero is not None and zero.dtype == np.uint8 and 8 % bits == 0:
            zero = _unpacked(zero, bits, -(-node.attributes.get_int("K", 0) // block) if block else 0)
        per = f"block of {block}"
        yield WEIGHT_ONLY, _Tensor(bits=bits, weight=True, scale=scale, zero=zero, per=per)
    elif node.op_type.startswith(_DYNAMIC):
        if node.op_type == "DynamicQuantizeLinear":
            yield DYNAMIC, _Tensor(bits=8, weight=False, scale=None, zero=None)
        yield from ((DYNAMIC, tensor) for tensor in _weights_of(node))
        yield DYNAMIC, None
    elif node.op_type.startswith(_OPERATORS):
        yield from ((OPERATORS, tensor) for tensor in _weights_of(node))
        yield OPERATORS, _output_of(node)


def _unpacked(zero: Constant, bits: int, blocks: int) -> Constant:
    """Packed zero points, less the middle that stands for 0. Rows of `blocks` are padded to bytes; 0 for no padding."""
    flat = zero.reshape(-1).astype(np.uint8)
    parts = np.stack([(flat >> place) & ((1 << bits) - 1) for place in range(0, 8, bits)], axis=-1)
    row = -(-blocks * bits // 8) * (8 // bits)
    whole = parts.reshape(-1, row)[:, :blocks] if blocks and parts.size % row == 0 else parts
    return np.asarray(whole.astype(np.int16) - (1 << (bits - 1)))


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _of_pair(node: ir.Node, integers: ir.Value | None, *, weight: bool) -> _Tensor:
    scale, zero = (constant_value(_input(node, index)) for index in (1, 2))
    # a zero point tells the type also where types were not inferred; without one it is uint8
    told = _input(node, 2) or integers
    bits = 8 if told is None or told.dtype is None else told.dtype.bitwidth
    block = node.attributes.get_int("block_size", 0)
    per = f"block of {block}" if block else _per(scale)
    return _Tensor(bits=bits, weight=weight, scale=scale, zero=zero, per=per)


def _per(scale: Constant | None) -> str:
    return "channel" if scale is not None and scale.size > 1 else "tensor"


def _weights_of(node: ir.Node) -> Iterator[_Tensor]:
    """The integer matrices among the inputs, each with the next scale, which may be that of a Mul behind `node`."""
    for index, value in enumerate(node.inputs):
        array = constant_value(value)
        if value is None or value.dtype is None or array is None or array.dtype.kind not in "iu" or array.ndim < 2:
            continue
        following = [constant_value(other) for other in node.inputs[index + 1 :]]
        scales = [other for other in following if other is not None and other.dtype.kind == "f"]
        zeros = [other for other in following if other is not None and other.dtype == array.dtype]
        scale = next(iter(scales), _scale_behind(node))
        zero = next(iter(zeros), None)
        yield _Tensor(bits=value.dtype.bitwidth, weight=True, scale=scale, zero=zero, per=_per(scale))


def _scale_behind(node: ir.Node) -> Constant | None:
    """The constant that the scale of the activation is multiplied with: ConvInteger itself knows no scales."""
    data = node.inputs[0]
    quantizer = None if data is None else data.producer()
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
        return None
    results = _reach(node)
    for use in quantizer.outputs[1].uses():
        if use.node.op_type == "Mul" and results & {reader.node for reader in use.node.outputs[0].uses()}:
            found = [constant_value(value) for value in use.node.inputs]
            return next((array for array in found if array is not None), None)
    return None


def _reach(node: ir.Node) -> set[ir.Node]:
    """The readers of the sums that `node` writes, past the Cast that makes them floats."""
    direct = {use.node for use in node.outputs[0].uses()}
    casts = {reader for reader in direct if reader.op_type == "Cast"}
    return direct | {use.node for cast in casts for use in cast.outputs[0].uses()}


def _output_of(node: ir.Node) -> _Tensor | None:
    """The output of an operator on integers: its scale and zero point come last, but first in a Concat."""
    concat = node.op_type == "QLinearConcat"
    scalars: Sequence[ir.Value] = [v for v in node.inputs if v is not None and (rank(v) or 0) <= 1]
    floats = [i for i, v in enumerate(scalars) if (a := constant_value(v)) is not None and a.dtype.kind == "f"]
    if not floats or node.outputs[0].dtype == ir.DataType.FLOAT:
        return None
    at = floats[0] if concat else floats[-1]
    zero = scalars[at + 1] if at + 1 < len(scalars) else None
    told = node.outputs[0].dtype or (None if zero is None else zero.dtype)
    bits = 8 if told is None else told.bitwidth
    return _Tensor(
        bits=bits, weight=False, scale=constant_value(scalars[at]), zero=None if zero is None else constant_value(zero)
    )
