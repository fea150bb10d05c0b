"""`site_of`: a node with the quantization around it, as checks look at it."""

import numpy as np
import onnx_ir as ir

from passes.graph.editing import is_op, rank, sole_consumer, static_dims
from passes.graph.operators import ELEMENTWISE, LINEAR
from passes.lint.checks import Site, in_blocks
from passes.lint.quantized_graph import OutputQuantization, QuantizedGraph
from passes.target.operator_rule import OperatorRule


def site_of(node: ir.Node, rule: OperatorRule, graph: QuantizedGraph, add: ir.Node | None = None) -> Site:
    """add: an Add that the runtime turns into the bias of `node`."""
    inputs = tuple(graph.grid_before(value) for value in data_inputs(node))
    output = node.outputs[0] if add is None else add.outputs[0]
    end = graph.output_quantization(output, fuses=rule.fuses)
    if rule.pulls and end.grid is not None and not graph.is_captured(node.inputs[0]):
        inputs = tuple(end.grid if grid is None or grid.container == "float" else grid for grid in inputs)
    elif rule.carries and end.grid is None:
        end = OutputQuantization(grid=graph.grid_moved_on(node))
    bias = node.inputs[2] if node.op_type in LINEAR and len(node.inputs) > 2 else None
    if add is not None:
        bias = next(value for value in add.inputs if value is not node.outputs[0])
    if bias is None:
        form, grid = "none", None
    else:
        grid = graph.grid_before(bias)
        form = "computed" if grid is None else grid.container
    return Site(
        node=node,
        inputs=inputs,
        bias=form,
        bias_value=bias,
        bias_grid=grid,
        output=end,
        known=graph.written_as_integers,
    )


def biased_matmul(add: ir.Node, graph: QuantizedGraph) -> ir.Node | None:
    """The MatMul that, with the constant row that `add` adds, the runtime turns into a Gemm."""
    if not is_op(add, "Add"):
        return None
    for product, row in (add.inputs, tuple(reversed(add.inputs))):
        matmul = None if product is None else product.producer()
        if matmul is None or not is_op(matmul, "MatMul") or product is None or sole_consumer(product) is not add:
            continue
        rule, weight, width = graph.rules.get("MatMul"), static_dims(matmul.inputs[1]), static_dims(row)
        if rule is None or not rule.with_add or weight is None or len(weight) != 2 or width != weight[1:]:
            continue
        return matmul if graph.grid_before(row) is not None else None
    return None


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs of a node that hold data: without biases, bounds and axes."""
    if node.op_type == "Concat":
        count = len(node.inputs)
    else:
        count = 2 if node.op_type in LINEAR | ELEMENTWISE | {"PRelu"} else 1
    return [value for value in node.inputs[:count] if value is not None]


def trips_over_captured(site: Site, graph: QuantizedGraph) -> bool:
    """Whether the runtime packs a weight that is held as integers beside float data, but does not find it in a body.

    ONNX Runtime makes MatMulNBits of the node (`TransposeDQWeightsForMatMulNBits`). It looks for integers and scale in
    the body, and fails where these are captured; a zero point that it does not find it leaves out.
    """
    node = site.node
    weight = site.inputs[1] if is_op(node, "MatMul", "Gemm") else None
    if weight is None or weight.node is None or not weight.constant or site.inputs[0] is not None:
        return False
    integers, scale, zero = (*weight.node.inputs, None)[:3]
    axes = rank(integers)
    packed = (
        weight.container.endswith(("int8", "int4", "int2"))
        and (weight.axis is None or axes is None or weight.axis % axes == axes - 1 or in_blocks(weight))
        and sole_consumer(weight.node.outputs[0]) is node
        and site.output.grid is None
        and not node.attributes.get_int("transB", 0)
    )
    if not packed:
        return False
    unseen = bool(np.any(weight.zero_point)) and graph.is_out_of_reach(zero)
    return graph.is_out_of_reach(integers) or graph.is_out_of_reach(scale) or unseen
