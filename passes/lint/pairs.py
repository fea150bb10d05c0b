"""Whether integer kernels saturate on the weights of a layer, in a file of any origin."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_op, scalar_value
from passes.lint.quantized_graph import Grid, QuantizedGraph
from passes.quantize.pair_sums import greatest_pair_sum, pair_bound
from passes.target.target import Target

# Operators on integers → the input slots of their activations and their weights.
OPERANDS = {"ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QGemm": (0, 3), "QLinearConv": (0, 3),
               "QLinearMatMul": (0, 3)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """greatest: sum of two neighbouring weights of one sign. bound: up to which the kernel does not saturate."""

    greatest: int
    bound: int


def pairs_of(node: ir.Node, graph: QuantizedGraph, target: Target) -> Pairs | None:
    """The pairs of `node`; None where the target's kernel adds in 32 bits, or the weights are no int8 constants."""
    rule = graph.rules.get(node.op_type, graph.rules.get("QLinear") if node.op_type in OPERANDS else None)
    if rule is None or not rule.adds_pairs or not target.pair_limit:
        return None
    found = _of_integers(node) if node.op_type in OPERANDS else _of_grids(node, graph)
    if found is None or found[0] not in rule.adds_pairs:
        return None
    _, greatest, integers = found
    return Pairs(
        greatest=greatest_pair_sum(node, integers, target.pair_order), bound=pair_bound(target.pair_limit, greatest)
    )


def _of_integers(node: ir.Node) -> tuple[str, int, NDArray[np.integer]] | None:
    """Element type of the activations, the greatest of them, and the weights."""
    index, of_weight = OPERANDS[node.op_type]
    source, integers = node.inputs[index], constant_value(node.inputs[of_weight])
    zero = node.inputs[index + 2] if index + 2 < len(node.inputs) else None
    types = [value.dtype for value in (source, zero) if value is not None and value.dtype is not None]
    if source is None or not types or integers is None or integers.dtype != np.int8:
        return None
    return types[0].name.lower(), _greatest(source), integers


def _of_grids(node: ir.Node, graph: QuantizedGraph) -> tuple[str, int, NDArray[np.integer]] | None:
    grids = [graph.grid_before(value) for value in node.inputs[:2]]
    weight = None if len(grids) < 2 or grids[1] is None else grids[1].node
    integers = None if weight is None else constant_value(weight.inputs[0])
    if grids[0] is None or integers is None or integers.dtype != np.int8:
        return None
    return grids[0].container, _greatest_of(grids[0]), integers


def _greatest_of(grid: Grid) -> int:
    """The greatest integer that is dequantized, counted from the least of its type."""
    source = None if grid.node is None or grid.node.op_type != "DequantizeLinear" else grid.node.inputs[0]
    return 255 if source is None else _greatest(source)


def _greatest(value: ir.Value) -> int:
    """The same for 8-bit integers; a Clip right before bounds them."""
    clip = value.producer()
    bound = scalar_value(clip.inputs[2]) if clip is not None and is_op(clip, "Clip") and len(clip.inputs) > 2 else None
    if bound is None:
        return 255
    return int(bound) + (128 if value.dtype == ir.DataType.INT8 else 0)
