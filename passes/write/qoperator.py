"""`ToQOperator`: Quantize/Dequantize around float operators become operators on integers (QLinearConv and its kin)."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    drop_unused_initializers,
    is_op,
    rank,
    replace_with,
    scalar_value,
    sole_consumer,
)
from passes.graph.operators import MOVEMENTS

logger = logging.getLogger(__name__)

CONTRIB_DOMAIN = "com.microsoft"
# These work on integers as on floats, by kernels that ONNX Runtime has. Of a Split each output would have to be
# quantized; GatherElements and GatherND are not tested.
MOVES = (MOVEMENTS | {"MaxPool"}) - {"GatherElements", "GatherND", "Split"}
# Those for which ONNX Runtime has a QLinear operator of one input.
WITH_ONE_INPUT = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax")

Grid: TypeAlias = tuple[ir.Value, ir.Value]
"""Scale and zero point of the output of a new operator."""


class Quantized(NamedTuple):
    """The three inputs of a DequantizeLinear."""

    integers: ir.Value
    scale: ir.Value
    zero_point: ir.Value


class ToQOperator(ir.passes.InPlacePass):
    """For each operator between DequantizeLinear and QuantizeLinear:

    1. Conv becomes QLinearConv; its bias has to be int32 with the accumulator's scale.
    2. Gemm becomes a QLinearConv of one tap, for QLinearMatMul knows no bias.
    3. MatMul becomes QLinearMatMul, where at most its second operand has a scale per column.
    4. Add, Mul, Concat, pooling, LeakyRelu, Sigmoid and Softmax become ONNX Runtime's QLinear operators.
    5. Movements (Reshape, Transpose, ...) and MaxPool get the integers as their input.
    6. A Relu or Clip before the QuantizeLinear goes where saturation does the same; elsewhere it becomes a Clip of the
       integers.

    All else stays between its DequantizeLinear and QuantizeLinear.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph, names = model.graph, FreshNames(model.graph)
        modified = False
        for node in list(graph):
            make = CONVERSIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            quantize = None if make is None or node.graph is None else _quantizes(node)
            if make is None or quantize is None:
                continue
            scale, zero_point = quantize.inputs[1:]
            assert scale is not None and zero_point is not None
            if made := make(graph, names, node, (scale, zero_point)):
                _put(graph, names, node, quantize, made)
                logger.debug("%s %s becomes %s", node.op_type, node.name, ", ".join(new.op_type for new in made))
                modified = True
        drop_unused_initializers(graph)
        if any(node.domain == CONTRIB_DOMAIN for node in graph):
            model.opset_imports[CONTRIB_DOMAIN] = 1
        return ir.passes.PassResult(model, modified=modified)


def _quantizes(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear that alone reads the node's first output, perhaps behind a Relu or Clip."""
    reader = sole_consumer(node.outputs[0])
    if reader is not None and is_op(reader, "Relu", "Clip") and reader.inputs[0] is node.outputs[0]:
        if any(value is not None and scalar_value(value) is None for value in reader.inputs[1:]):
            return None
        reader = sole_consumer(reader.outputs[0])
    return reader if is_op(reader, "QuantizeLinear") and reader is not None and len(reader.inputs) == 3 else None


def _put(graph: ir.Graph, names: FreshNames, node: ir.Node, quantize: ir.Node, made: Sequence[ir.Node]) -> None:
    """Puts new nodes, the last of which computes the integers, in the place of `node` up to its QuantizeLinear."""
    nodes = [*made, *_bounded(graph, names, node, quantize, made[-1].outputs[0])]
    name, annotation = node.name, quantize.metadata_props
    for new in nodes[:-1]:
        new.name = names(f"{name}_{new.op_type}")
        new.outputs[0].name = names(f"{new.name}_output")
        new.outputs[0].type = quantize.outputs[0].type
        graph.insert_before(quantize, new)
    nodes[-1].metadata_props.update(annotation)
    replace_with(quantize, nodes[-1])
    main = next(new for new in nodes if new.op_type.startswith("QLinear") or new is nodes[-1])
    if main is not nodes[-1]:
        nodes[-1].name = names(f"{name}_{nodes[-1].op_type}")
    main.name = name


def _bounded(graph: ir.Graph, names: FreshNames, node: ir.Node, quantize: ir.Node, integers: ir.Value) -> list[ir.Node]:
    """A Clip of the integers for the Relu or Clip between `node` and `quantize`; none where saturation does the same.

    Rounding is monotone, so bounding the integers by the rounded bounds gives what bounding and then rounding gave.
    """
    function = quantize.inputs[0].producer() if quantize.inputs[0] is not None else None
    if function is None or function is node:
        return []
    bounds = [0.0, np.inf] if function.op_type == "Relu" else [-np.inf, np.inf]
    for index, value in enumerate(function.inputs[1:]):
        if value is not None and (bound := scalar_value(value)) is not None:
            bounds[index] = bound
    scale, zero = constant_value(quantize.inputs[1]), constant_value(quantize.inputs[2])
    assert scale is not None and zero is not None
    limits = np.iinfo(zero.dtype)
    low, high = (np.clip(np.rint(np.array(bounds) / float(scale)) + int(zero), limits.min, limits.max)).astype(
        zero.dtype
    )
    if (low, high) == (limits.min, limits.max):
        return []
    ends = [add_initializer(graph, names(f"{function.name}_{which}"), np.asarray(end))
            for which, end in (("least", low), ("greatest", high))]  # fmt: skip
    return [ir.node("Clip", [integers, *ends])]


def _dequantized(value: ir.Value | None) -> Quantized | None:
    """The integers behind a value, None where no DequantizeLinear computes it."""
    producer = None if value is None else value.producer()
    if producer is None or not is_op(producer, "DequantizeLinear") or len(producer.inputs) != 3:
        return None
    integers, scale, zero_point = producer.inputs
    assert integers is not None and scale is not None
    return None if zero_point is None else Quantized(integers, scale, zero_point)


def _conv(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    found = _layer(node)
    if found is None:
        return []
    source, weight, bias = found
    inputs = [*source, *weight, *output, *bias]
    return [ir.node("QLinearConv", inputs, node.attributes)]


def _gemm(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    attributes = node.attributes
    factors = (attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0))
    found = _layer(node)
    if found is None or factors != (1.0, 1.0) or attributes.get_int("transA", 0) != 0:
        return []
    source, weight, bias = found
    integers = constant_value(weight.integers)
    if integers is None:
        return []
    kernel = (integers if attributes.get_int("transB", 0) != 0 else integers.T)[:, :, None, None]
    kernel_value = add_initializer(graph, names(f"{weight.integers.name}_taps"), np.ascontiguousarray(kernel))
    axes = add_initializer(graph, names(f"{node.name}_axes"), np.array([2, 3]))
    widen = ir.node("Unsqueeze", [source.integers, axes])
    inputs = [widen.outputs[0], *source[1:], kernel_value, *weight[1:], *output, *bias]
    conv = ir.node("QLinearConv", inputs, {"kernel_shape": [1, 1]})
    return [widen, conv, ir.node("Flatten", [conv.outputs[0]], {"axis": 1})]


def _layer(node: ir.Node) -> tuple[Quantized, Quantized, list[ir.Value]] | None:
    """Input, weight and integer bias (as a list of at most one) of a Conv or Gemm; None where one of them is float."""
    source, weight = _dequantized(node.inputs[0]), _dequantized(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = _dequantized(given)
    if source is None or weight is None or (given is not None and bias is None):
        return None
    if bias is not None and bias.integers.dtype != ir.DataType.INT32:
        return None
    return source, weight, [] if bias is None else [bias.integers]


def _matmul(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    left, right = (_dequantized(value) for value in node.inputs)
    if left is None or right is None or rank(left.scale) != 0:
        return []
    return [ir.node("QLinearMatMul", [*left, *right, *output])]


def _sum_or_product(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    left, right = (_dequantized(value) for value in node.inputs)
    if left is None or right is None:
        return []
    inputs = [*left, *right, *output]
    return [ir.node(f"QLinear{node.op_type}", inputs, domain=CONTRIB_DOMAIN)]


def _concat(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    parts = [_dequantized(value) for value in node.inputs]
    flat = [value for part in parts if part is not None for value in part]
    if None in parts:
        return []
    return [ir.node("QLinearConcat", [*output, *flat], node.attributes, domain=CONTRIB_DOMAIN)]


def _with_one_input(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    source = _dequantized(node.inputs[0])
    if source is None:
        return []
    attributes = dict(node.attributes)
    if node.op_type == "Softmax":
        attributes["opset"] = ir.AttrInt64("opset", 13)
        attributes.setdefault("axis", ir.AttrInt64("axis", -1))
    inputs = [*source, *output]
    return [ir.node(f"QLinear{node.op_type}", inputs, attributes, domain=CONTRIB_DOMAIN)]


def _move(graph: ir.Graph, names: FreshNames, node: ir.Node, output: Grid) -> list[ir.Node]:
    source = _dequantized(node.inputs[0])
    if source is None or len(node.outputs) > 1 or source.scale is not output[0]:
        return []
    return [ir.node(node.op_type, [source.integers, *node.inputs[1:]], node.attributes)]


CONVERSIONS: dict[str, Callable[[ir.Graph, FreshNames, ir.Node, Grid], list[ir.Node]]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _sum_or_product,
    "Mul": _sum_or_product,
    "Concat": _concat,
    **dict.fromkeys(WITH_ONE_INPUT, _with_one_input),
    **dict.fromkeys(MOVES, _move),
}
