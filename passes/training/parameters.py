"""`find_parameters`: what trains in a float or QDQ graph, and where it lies in the file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_op, name_of
from passes.graph.operators import LINEAR, MOVEMENTS, PARAMETERS
from passes.quantize.reading import is_dequantize, is_quantize

Choice: TypeAlias = Literal["head", "biases", "scales", "all"]
Kind: TypeAlias = Literal["float", "integer", "accumulator", "scale"]

SLOTS = {
    **PARAMETERS,
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
"""Inputs that hold what training found; a BatchNormalization's statistics are no gradient's."""
BIAS_SLOT = 2
LEAST_BITS = 8  # of an integer type that numpy has


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameter:
    """One initializer of the file that training fills.

    name: of the initializer. start: what trains, float32: the numbers that integers stand for, of a scale log2 of it.
    kind: how the initializer follows from that: as it is ("float"), on the grid of the DequantizeLinear behind it
    ("integer", or "accumulator" where that is int32, which QuantizeLinear does not give), or as 2^start ("scale").
    """

    name: str
    kind: Kind
    start: Float32[NDArray[np.float32], "..."]


def find_parameters(graph: ir.Graph, output: ir.Value, choice: Choice) -> tuple[Parameter, ...]:
    """The parameters of a choice, in graph order.

    Args:
        graph: Its constants all initializers.
        output: What the loss is of.
        choice: "head": weights and biases of the last layer before `output`; "biases": of all layers, and what
            normalizations add; "scales": of all quantizers; "all": all of these, weights and the factors of
            normalizations. With "all", scales that are powers of two stay, and so do all where biases lie on the
            accumulator's grid, which hangs on them.

    Raises:
        ValueError: There are none; the message says why.
    """
    layers = [node for node in graph if is_op(node, *SLOTS)] if choice != "head" else list(_heads(output))
    if choice == "head" and not layers:
        raise ValueError(
            f"no Conv, Gemm or MatMul with constant weights leads to the output {name_of(output)!r}, so that the model "
            "has no head; train biases, scales or all"
        )
    values: list[ir.Value] = []
    if choice != "scales":
        values = [value for layer in layers for value in _values(layer, biases_only=choice == "biases")]
    found = [_parameter(value) for value in dict.fromkeys(values)]
    held = any(parameter.kind == "accumulator" for parameter in _all_biases(graph))
    scales = _scales(graph)
    if choice == "scales":
        if held:
            raise ValueError(
                "its biases are integers on the accumulator's grid, which hangs on the scales, so that these cannot "
                "train; write the model for --target ort, or train head or biases"
            )
        found = scales
    elif choice == "all" and not held and not all(_is_power_of_two(scale) for scale in scales):
        found += scales
    if not found:
        integer = next((node.op_type for node in graph if "Integer" in node.op_type or "QLinear" in node.op_type), "")
        if integer:
            raise ValueError(f"it computes on integers ({integer}), which has no gradient; give the QDQ form")
        what = {"scales": "no QuantizeLinear or DequantizeLinear", "biases": "no layer with a bias"}
        raise ValueError(f"it holds {what.get(choice, 'no constant float32 weights')}, so that nothing trains")
    return tuple(found)


def _heads(output: ir.Value) -> Iterator[ir.Node]:
    """The layers from which a value is reached without another one."""
    waiting, seen = [output], set()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_op(node, *LINEAR) and any(_constant(value) is not None for value in node.inputs[:2]):
            yield node
        else:
            waiting.extend(value for value in node.inputs if value is not None)


def _values(layer: ir.Node, *, biases_only: bool) -> Iterator[ir.Value]:
    for slot in SLOTS[layer.op_type]:
        value = _constant(layer.inputs[slot]) if slot < len(layer.inputs) else None
        if value is not None and (slot == BIAS_SLOT or not biases_only):
            yield value
    for use in layer.outputs[0].uses() if is_op(layer, "MatMul") else ():
        added = _constant(use.node.inputs[1 - use.idx]) if is_op(use.node, "Add") else None
        if added is not None:
            yield added


def _constant(value: ir.Value | None) -> ir.Value | None:
    """The float or integer initializer behind an input, through its quantizers and whatever moves it; else None."""
    while value is not None and (node := value.producer()) is not None:
        if not (is_quantize(node) or is_dequantize(node) or is_op(node, *MOVEMENTS)):
            return None
        value = node.inputs[0]
    return value if value is not None and value.is_initializer() and value.dtype is not None else None


def _parameter(value: ir.Value) -> Parameter:
    array = constant_value(value)
    assert array is not None and value.dtype is not None
    if value.dtype == ir.DataType.FLOAT:
        return Parameter(name=name_of(value), kind="float", start=np.array(array, np.float32))
    node = reader_of(value)
    if node is None or value.dtype.bitwidth < LEAST_BITS or not value.dtype.is_integer():
        raise ValueError(
            f"{name_of(value)!r} is {value.dtype.name.lower()}, and only float32 and integers of 8 bits or more train; "
            "write the model for --target ort"
        )
    scale, zero = (constant_value(given) for given in (*node.inputs[1:3], None)[:2])
    if scale is None or node.attributes.get_int("block_size", 0) > 0:
        raise ValueError(f"the scales of {name_of(value)!r} belong to blocks, or are computed, so that it cannot train")
    axis = node.attributes.get_int("axis", 1)
    shape = [] if scale.size == 1 else [-1 if at == axis % array.ndim else 1 for at in range(array.ndim)]
    steps = array.astype(np.float64) - (0 if zero is None else zero.astype(np.float64).reshape(shape))
    start = (steps * scale.astype(np.float64).reshape(shape)).astype(np.float32)
    kind: Kind = "accumulator" if value.dtype == ir.DataType.INT32 else "integer"
    return Parameter(name=name_of(value), kind=kind, start=start)


def reader_of(value: ir.Value) -> ir.Node | None:
    """The DequantizeLinear that gives integers their numbers; None where something else reads them."""
    nodes = [use.node for use in value.uses()]
    return nodes[0] if len(nodes) == 1 and is_dequantize(nodes[0]) else None


def _all_biases(graph: ir.Graph) -> Sequence[Parameter]:
    layers = [node for node in graph if is_op(node, *SLOTS)]
    values = [value for layer in layers for value in _values(layer, biases_only=True)]
    return [_parameter(value) for value in values if value.dtype == ir.DataType.INT32]


def _scales(graph: ir.Graph) -> list[Parameter]:
    values = [node.inputs[1] for node in graph if is_quantize(node) or is_dequantize(node)]
    found = []
    for value in dict.fromkeys(values):
        array = constant_value(value)
        if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT and array is not None:
            least = np.finfo(np.float32).tiny
            found.append(
                Parameter(
                    name=name_of(value), kind="scale", start=np.asarray(np.log2(np.maximum(array, least)), np.float32)
                )
            )
    return found


def _is_power_of_two(scale: Parameter) -> bool:
    return bool((scale.start == np.rint(scale.start)).all())
