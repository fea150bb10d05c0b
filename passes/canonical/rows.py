"""Layers over tokens, as products of two axes."""

import logging

import numpy as np
import onnx_ir as ir

from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    is_op,
    rank,
    replace_with,
    sole_consumer,
    static_dims,
)

logger = logging.getLogger(__name__)


def reshape_before_products(graph: ir.Graph) -> int:
    """Reshape or Flatten to (rows, columns), columns kept, behind a MatMul by a constant matrix -> before it. How many.

    LeViT normalizes its tokens as rows of a batch: now the product, of two axes, is a layer that takes it in.
    """
    names = FreshNames(graph)
    return sum(_move(graph, node, names) for node in graph if is_op(node, "MatMul"))


def _move(graph: ir.Graph, product: ir.Node, names: FreshNames) -> bool:
    x, weight = product.inputs[0], constant_value(product.inputs[1])
    reshape = sole_consumer(product.outputs[0])
    if x is None or weight is None or weight.ndim != 2 or (rank(x) or 0) < 3 or reshape is None:
        return False
    rows = reshape.outputs[0]
    if not is_op(reshape, "Reshape", "Flatten") or rank(rows) != 2 or static_dims(rows, 1) != weight.shape[1:]:
        return False
    target = add_initializer(graph, names(f"{product.name}.rows"), np.array([-1, weight.shape[0]]))
    before = ir.node("Reshape", [x, target], name=names(f"{product.name}.Reshape"))
    given = before.outputs[0]
    given.name, given.type = names(f"{product.name}.input"), x.type
    given.shape = ir.Shape([None if rows.shape is None else rows.shape[0], weight.shape[0]])
    graph.insert_before(product, before)
    replace_with(reshape, ir.node("MatMul", [given, product.inputs[1]], name=product.name))
    logger.debug("%s %s goes before the product %s", reshape.op_type, reshape.name, product.name)
    return True
