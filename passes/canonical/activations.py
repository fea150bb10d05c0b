"""Activation functions that exporters write as chains of operators: GELU, hard swish, hard sigmoid."""

import logging
import math
from collections.abc import Callable

import onnx_ir as ir

from passes.graph.editing import is_op, replace_with, scalar_value, sole_consumer

logger = logging.getLogger(__name__)

PRODUCTS = 8  # one into the other, that are taken apart: twice as many as any of these functions is written with


def fuse_gelu(graph: ir.Graph) -> int:
    """x/2 * (1 + erf(x/sqrt 2)) -> Gelu, in any order of the factors, and with tanh(sqrt(2/pi) * (x + .044715 x³)) its
    approximation. How many; none below opset 20."""
    if graph.opset_imports.get("", 0) < 20:
        return 0

    def gelu(factor: float, values: list[ir.Value]) -> ir.Node | None:
        if len(values) != 2 or not _close(factor, 0.5):
            return None
        for x, other in (values, values[::-1]):
            erf = _added(other, 1.0)
            producer = None if erf is None else erf.producer()
            if is_op(producer, "Erf") and producer is not None and _same_factor(producer.inputs[0], x, math.sqrt(0.5)):
                return ir.node("Gelu", [x])
            if is_op(producer, "Tanh") and producer is not None and _is_cubic(producer.inputs[0], x):
                return ir.node("Gelu", [x], {"approximate": "tanh"})
        return None

    return _fuse(graph, gelu)


def fuse_hard_swish(graph: ir.Graph) -> int:
    """x * clip(x + 3, 0, 6) / 6, and x * HardSigmoid(x) of alpha 1/6 and beta 1/2 -> HardSwish. How many."""

    def hard_swish(factor: float, values: list[ir.Value]) -> ir.Node | None:
        if len(values) != 2:
            return None
        for x, other in (values, values[::-1]):
            gate = other.producer()
            if _close(factor, 1 / 6) and _clip_0_6_of_plus_3(other) is x:
                return ir.node("HardSwish", [x])
            if _close(factor, 1.0) and _is_hard_sigmoid(gate) and gate is not None and gate.inputs[0] is x:
                return ir.node("HardSwish", [x])
        return None

    return _fuse(graph, hard_swish)


def fuse_hard_sigmoid(graph: ir.Graph) -> int:
    """clip(x + 3, 0, 6) / 6 -> HardSigmoid of alpha 1/6 and beta 1/2. How many."""

    def hard_sigmoid(factor: float, values: list[ir.Value]) -> ir.Node | None:
        if len(values) != 1 or not _close(factor, 1 / 6) or (x := _clip_0_6_of_plus_3(values[0])) is None:
            return None
        return ir.node("HardSigmoid", [x], {"alpha": 1 / 6, "beta": 0.5})

    return _fuse(graph, hard_sigmoid)


def _fuse(graph: ir.Graph, match: Callable[[float, list[ir.Value]], ir.Node | None]) -> int:
    """Replaces every product whose (constant factor, other factors) `match` turns into a node."""
    count = 0
    for node in graph:
        if is_op(node, "Mul", "Div") and (fused := match(*_factors(node))) is not None:
            fused.name = node.name
            replace_with(node, fused)
            logger.debug("the chain that ends in %s %s becomes %s", node.op_type, node.name, fused.op_type)
            count += 1
    return count


def _factors(node: ir.Node) -> tuple[float, list[ir.Value]]:
    """`node` as a constant times other values; products that only the next one reads are taken apart, a few."""
    factor, values, taken = 1.0, list[ir.Value](), 0
    waiting = [(node.outputs[0], node)]  # each with the product that reads it
    while waiting:
        value, reader = waiting.pop()
        number, product = scalar_value(value), value.producer()
        # One reader each also keeps a ladder of squares from being written out as 2**n factors.
        apart = taken < PRODUCTS and (product is node or sole_consumer(value) is reader)
        if number is not None:
            factor *= number
        elif product is not None and apart and is_op(product, "Mul"):
            waiting.extend((other, product) for other in reversed(product.inputs) if other is not None)
            taken += 1
        elif product is not None and apart and is_op(product, "Div") and (divisor := scalar_value(product.inputs[1])):
            factor /= divisor
            waiting.extend((other, product) for other in product.inputs[:1] if other is not None)
            taken += 1
        else:
            values.append(value)
    return factor, values


def _close(number: float | None, wanted: float) -> bool:
    # float16 constants and decimals typed by hand (1.41421) are meant as well
    return number is not None and math.isclose(number, wanted, rel_tol=1e-3, abs_tol=1e-6)


def _same_factor(value: ir.Value | None, x: ir.Value, factor: float) -> bool:
    """Whether value = x * factor."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Mul", "Div"):
        return False
    number, values = _factors(node)
    return values == [x] and _close(number, factor)


def _is_cubic(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether value = sqrt(2/pi) * (x + .044715 x³)."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Mul", "Div"):
        return False
    factor, values = _factors(node)
    total = values[0].producer() if len(values) == 1 and _close(factor, math.sqrt(2 / math.pi)) else None
    if total is None or not is_op(total, "Add") or x not in total.inputs:
        return False
    product = total.inputs[1 if total.inputs[0] is x else 0]
    cube = None if product is None else product.producer()
    if cube is None or not is_op(cube, "Mul", "Div"):
        return False
    factor, values = _factors(cube)
    power = values[0].producer() if len(values) == 1 else None
    third = power is not None and is_op(power, "Pow") and power.inputs[0] is x and scalar_value(power.inputs[1]) == 3
    return _close(factor, 0.044715) and (values == [x, x, x] or third)


def _added(value: ir.Value | None, term: float) -> ir.Value | None:
    """x where value = x + term."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Add"):
        return None
    for x, constant in (node.inputs, node.inputs[::-1]):
        if _close(scalar_value(constant), term):
            return x
    return None


def _clip_0_6_of_plus_3(value: ir.Value) -> ir.Value | None:
    """x where value = clip(x + 3, 0, 6)."""
    node = value.producer()
    if node is None or not is_op(node, "Clip") or len(node.inputs) != 3:
        return None
    low, high = scalar_value(node.inputs[1]), scalar_value(node.inputs[2])
    return _added(node.inputs[0], 3.0) if low == 0 and high == 6 else None


def _is_hard_sigmoid(node: ir.Node | None) -> bool:
    if node is None or not is_op(node, "HardSigmoid"):
        return False
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return _close(alpha, 1 / 6) and _close(beta, 0.5)
