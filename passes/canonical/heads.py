"""The heads of classifiers: global pooling, flattening, a linear layer."""

import logging
import math

import onnx_ir as ir

from passes.graph.affine import channel_vector, output_channels, rounded_to
from passes.graph.editing import (
    FreshNames,
    as_float64,
    constant_value,
    is_op,
    rank,
    replace_with,
    scalar_value,
    set_constant_input,
    sole_consumer,
    static_dims,
)

logger = logging.getLogger(__name__)

RESHAPINGS = 8  # between a size and where it is used: an exporter writes three at most


def pool_globally(graph: ir.Graph) -> int:
    """ReduceMean over the spatial axes and AveragePool over the whole map -> GlobalAveragePool. How many."""
    names, count = FreshNames(graph), 0
    for node in graph:
        keeps = node.attributes.get_int("keepdims", 1) == 1
        if not (_reduces_space(node) or _covers_map(node)):
            continue
        pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
        if keeps:
            replace_with(node, pool)
        else:
            data, value = node.inputs[0], node.outputs[0]
            assert data is not None and data.shape is not None
            pooled = pool.outputs[0]
            pooled.name, pool.name = names(f"{value.name}.pooled"), names(f"{node.name}.pool")
            pooled.type, pooled.shape = value.type, ir.Shape([*data.shape[:2], *(1,) * (len(data.shape) - 2)])
            graph.insert_before(node, pool)
            replace_with(node, ir.node("Flatten", [pooled], {"axis": 1}, name=node.name))
        logger.debug("%s %s becomes GlobalAveragePool", node.op_type, node.name)
        count += 1
    return count


def _reduces_space(node: ir.Node) -> bool:
    if not is_op(node, "ReduceMean") or len(node.inputs) < 2:
        return False
    data = node.inputs[0]
    axes, all_axes = constant_value(node.inputs[1]), rank(data)
    if data is None or data.dtype is None or not data.dtype.is_floating_point():
        return False
    if axes is None or all_axes is None or all_axes < 3:
        return False
    return sorted(int(axis) % all_axes for axis in axes) == list(range(2, all_axes))


def _covers_map(node: ir.Node) -> bool:
    if not is_op(node, "AveragePool") or any(node.attributes.get_ints("pads", ())):
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    window = tuple(node.attributes.get_ints("kernel_shape", ()))
    return static_dims(node.inputs[0], 2) == window and not any(
        d != 1 for d in node.attributes.get_ints("dilations", ())
    )


def flatten_reshapes(graph: ir.Graph) -> int:
    """Reshape to (N, rest) -> Flatten. How many."""
    count = 0
    for node in graph:
        if is_op(node, "Reshape") and _keeps_first_axis_of_two(node):
            replace_with(node, ir.node("Flatten", [node.inputs[0]], {"axis": 1}, name=node.name))
            logger.debug("Reshape %s becomes Flatten", node.name)
            count += 1
    return count


def _keeps_first_axis_of_two(node: ir.Node) -> bool:
    data, target = node.inputs
    assert data is not None and target is not None
    rest = static_dims(data, 1)
    features = None if not rest else math.prod(rest)
    constant = constant_value(target)
    if constant is not None:
        if constant.shape != (2,):
            return False
        first, second = (int(size) for size in constant)
        if first == 0 and second == -1:
            return node.attributes.get_int("allowzero", 0) == 0
        return bool(features) and second == features
    producer = target.producer()
    if producer is None or not is_op(producer, "Concat") or len(producer.inputs) != 2:
        return False
    size = scalar_value(producer.inputs[1])
    return _is_first_size(producer.inputs[0], data) and (size == -1 or (bool(features) and size == features))


def _is_first_size(value: ir.Value | None, data: ir.Value) -> bool:
    """Whether `value` is the size of axis 0 of `data`, taken from its Shape."""
    node = None if value is None else value.producer()
    for _ in range(RESHAPINGS):
        if node is not None and is_op(node, "Unsqueeze", "Squeeze", "Cast"):
            node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None:
        return False
    if is_op(node, "Shape"):
        return _same_first_axis(node.inputs[0], data) and (
            node.attributes.get_int("start", 0) == 0 and node.attributes.get_int("end", -1) == 1
        )
    shape = None if not node.inputs or node.inputs[0] is None else node.inputs[0].producer()
    if shape is None or not is_op(shape, "Shape") or shape.attributes.get_int("start", 0) != 0:
        return False
    if is_op(node, "Gather"):
        return scalar_value(node.inputs[1]) == 0 and _same_first_axis(shape.inputs[0], data)
    if is_op(node, "Slice"):
        wanted = (0, 1, 0, 1)[: len(node.inputs) - 1]
        bounds = tuple(scalar_value(bound) for bound in node.inputs[1:])
        return bounds == wanted and _same_first_axis(shape.inputs[0], data)
    return False


def _same_first_axis(value: ir.Value | None, data: ir.Value) -> bool:
    if value is data:
        return True
    if value is None or not value.shape or not data.shape:
        return False
    # Equal numbers may be a coincidence of one traced batch; equal symbols are not.
    first, other = value.shape[0], data.shape[0]
    return isinstance(first, ir.SymbolicDim) and first.value is not None and first == other


def fuse_gemm(graph: ir.Graph) -> int:
    """MatMul of two axes by a constant, plus a constant per column -> Gemm. How many."""
    count = 0
    for node in graph:
        if not is_op(node, "MatMul") or rank(node.inputs[0]) != 2:
            continue
        weight, add = constant_value(node.inputs[1]), sole_consumer(node.outputs[0])
        if weight is None or weight.ndim != 2 or add is None or not is_op(add, "Add"):
            continue
        bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        constant = constant_value(bias)
        if constant is None or constant.shape not in ((weight.shape[1],), (1, weight.shape[1])):
            continue
        # The linear layer keeps the name of its MatMul, its output the name of the sum.
        replace_with(add, ir.node("Gemm", [*node.inputs, bias], name=node.name))
        logger.debug("MatMul %s and Add %s become Gemm", node.name, add.name)
        count += 1
    return count


def plain_gemms(graph: ir.Graph) -> int:
    """alpha into a constant weight, beta into a constant bias, and that bias to (columns,). How many nodes changed."""
    names = FreshNames(graph)
    return sum(_make_plain(node, names) for node in graph if is_op(node, "Gemm"))


def _make_plain(node: ir.Node, names: FreshNames) -> bool:
    weight = constant_value(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f":
        return False
    changed = False
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha != 1.0:
        set_constant_input(node, 1, rounded_to(weight.dtype, alpha * as_float64(weight)), names, f"{node.name}.weight")
        node.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
        changed = True
    bias = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    columns = output_channels(node, weight)
    row = None if bias is None else channel_vector(bias, 2, columns)
    if bias is not None and row is not None and (beta != 1.0 or bias.shape != (columns,)):
        set_constant_input(node, 2, rounded_to(bias.dtype, beta * row), names, f"{node.name}.bias")
        node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)
        changed = True
    if changed:
        logger.debug("the constants of Gemm %s take in alpha %g and beta %g", node.name, alpha, beta)
    return changed
