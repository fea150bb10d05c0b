"""LayerNormalization that exporters before opset 17 wrote as nine operators."""

import logging

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    is_op,
    rank,
    replace_with,
    scalar_value,
    sole_consumer,
    static_dims,
)

logger = logging.getLogger(__name__)


def fuse_layer_norm(graph: ir.Graph) -> int:
    """(x - mean) / sqrt(mean((x - mean)²) + epsilon) over the last axis, with the product and the sum with one constant
    per number behind it, -> LayerNormalization. How many.

    In its parts a mean of squares would be quantized.
    """
    names, count = FreshNames(graph), 0
    for node in graph:
        if not is_op(node, "Div") or (found := _normalized(node)) is None:
            continue
        x, epsilon = found
        sizes = None if x.shape is None else static_dims(x, len(x.shape) - 1)
        if sizes is None:
            continue
        last, scale, shift = node, np.ones(sizes, np.float32), None
        if (taken := _with_constant(last, "Mul", sizes[0])) is not None:
            last, scale = taken
        if (taken := _with_constant(last, "Add", sizes[0])) is not None:
            last, shift = taken
        inputs = [x, add_initializer(graph, names(f"{node.name}.scale"), scale)]
        if shift is not None:
            inputs.append(add_initializer(graph, names(f"{node.name}.shift"), shift))
        fused = ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=node.name)
        replace_with(last, fused)
        logger.debug("the chain that ends in %s %s becomes LayerNormalization", last.op_type, last.name)
        count += 1
    return count


def _normalized(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What a Div normalizes, and the epsilon; None where it does not."""
    centred, root = node.inputs
    x = _centred(centred)
    added = _input_of(root, "Sqrt")
    total = None if added is None else added.producer()
    if x is None or total is None or not is_op(total, "Add"):
        return None
    for variance, constant in (total.inputs, total.inputs[::-1]):
        epsilon, squares = scalar_value(constant), _mean_of(variance)
        if epsilon is not None and squares is not None and (base := _root_of_square(squares)) is not None:
            return (x, epsilon) if _centred(base) is x else None
    return None


def _centred(value: ir.Value | None) -> ir.Value | None:
    """x of x - mean(x)."""
    sub = None if value is None else value.producer()
    if sub is None or not is_op(sub, "Sub"):
        return None
    x, mean = sub.inputs
    return x if x is not None and _mean_of(mean) is x else None


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """x of its mean over the last axis, which is kept."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "ReduceMean") or not node.attributes.get_int("keepdims", 1):
        return None
    axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    axis_count = rank(node.inputs[0])
    if axes is None or axes.size != 1 or axis_count is None:
        return None
    return node.inputs[0] if int(axes.reshape(())) in (-1, axis_count - 1) else None


def _root_of_square(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    if is_op(node, "Pow") and node is not None and scalar_value(node.inputs[1]) == 2:
        return node.inputs[0]
    if is_op(node, "Mul") and node is not None and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    return None


def _input_of(value: ir.Value | None, op_type: str) -> ir.Value | None:
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and is_op(node, op_type) else None


def _with_constant(node: ir.Node, op_type: str, size: int) -> tuple[ir.Node, NDArray[np.float32]] | None:
    """The only reader of a node, if it combines the output with one constant per number of the last axis."""
    reader = sole_consumer(node.outputs[0])
    if reader is None or not is_op(reader, op_type):
        return None
    for value in reader.inputs:
        array = None if value is node.outputs[0] else constant_value(value)
        if array is not None and array.dtype == np.float32 and array.shape[-1:] == (size,) and array.size == size:
            axes = rank(node.outputs[0]) or rank(reader.outputs[0]) or 0
            return (reader, array.reshape(size)) if array.ndim <= axes else None
    return None
