"""Masks of attention: numbers so low that, added to scores or put in their place, a Softmax makes nothing of them.

A grid that holds them holds no scores any more: its steps are as wide as they are low. And a mask that follows from an
input, as that of padding does, is calibrated on what was fed, often on nothing masked at all: then its grid ends at
zero, and it masks nothing.
"""

import math
from collections.abc import Iterable, Set

import numpy as np
import onnx_ir as ir

from passes.graph.editing import constant_value, is_constant, is_op
from passes.graph.operators import LINEAR, MOVEMENTS

LOW = -math.log(np.finfo(np.float32).tiny)  # 87: a score that lies as far below another weighs nothing in float32
_FIRST = MOVEMENTS | {"Cast", "Trilu"}  # what carries the numbers of its first input
_EACH = frozenset({"Add", "Concat", "Div", "Mul", "Sub"})  # what carries those of each


def masked_values(graph: ir.Graph) -> frozenset[ir.Value]:
    """Values, constants among them, that hold a mask or masked scores: from the number that masks to the Softmax.

    What computes a mask from inputs alone goes with it (1 - attention_mask), and so does what a Softmax gives that is
    asked for NaN, because all may be masked there.
    """
    softmaxes = [node for node in graph if is_op(node, "Softmax")]
    scores = _before(node.inputs[0] for node in softmaxes)
    given = _from_inputs(graph, scores)
    found: set[ir.Value] = set()
    for node in graph:
        if scores.isdisjoint(node.outputs):
            continue
        masks = [value for value in _carried(node) if value in found or _masks(node, value, given)]
        if masks or _is_filled_low(node):
            found.update(masks, node.outputs)
    for node in reversed(graph):
        if not found.isdisjoint(node.outputs):
            found.update(value for value in _carried(node) if value in given)
    for node in softmaxes:
        weights = node.outputs[0]
        if node.inputs[0] in found and any(is_op(use.node, "IsNaN") for use in weights.uses()):
            found.add(weights)
    return frozenset(found)


def is_never_masked_whole(scores: ir.Value) -> bool:
    """Whether in each row of what a Softmax over the last axis reads some number is above minus infinity.

    Only minus infinity in constants counts, and products of layers are numbers; what else scores are made of might be
    anything.
    """
    total = scores.producer()
    masks = total.inputs if total is not None and is_op(total, "Add") else ()
    waiting, seen = [scores], set[ir.Value]()
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in seen or (producer is not None and is_op(producer, *LINEAR)):
            continue
        seen.add(value)
        if (array := constant_value(value)) is not None:
            rows = np.atleast_1d(np.isfinite(array))
            known = (np.isfinite(array) | np.isneginf(array)).all()
            if not known or not (rows.any(axis=-1) if value in masks else rows).all():
                return False
        elif producer is None or not (carried := _carried(producer)):
            return False
        else:
            waiting.extend(carried)
    return True


def _carried(node: ir.Node) -> list[ir.Value]:
    """The inputs whose numbers, scaled or shifted at most, are in the output."""
    if is_op(node, *_EACH):
        carried = node.inputs
    elif is_op(node, "Where"):
        carried = node.inputs[1:]
    else:
        carried = node.inputs[:1] if is_op(node, *_FIRST) else ()
    return [value for value in carried if value is not None]


def _before(waiting: Iterable[ir.Value | None]) -> set[ir.Value]:
    """All that is carried into these values, and they themselves."""
    values, found = [value for value in waiting if value is not None], set[ir.Value]()
    while values:
        value = values.pop()
        if value not in found:
            found.add(value)
            producer = value.producer()
            values.extend(_carried(producer) if producer is not None else ())
    return found


def _from_inputs(graph: ir.Graph, scores: Set[ir.Value]) -> set[ir.Value]:
    """Those of the values, of floats, that follow from inputs without any layer between."""
    found = {value for value in graph.inputs if value in scores and _is_float(value)}
    for node in graph:
        carried = _carried(node)
        if not carried or scores.isdisjoint(node.outputs) or not _is_float(node.outputs[0]):
            continue
        if all(value in found or is_constant(value) or not _is_float(value) for value in carried):
            found.update(node.outputs)
    return found


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _masks(node: ir.Node, value: ir.Value, given: Set[ir.Value]) -> bool:
    """Whether a constant is so large that it masks. Factors of scores are none, however large."""
    if not is_constant(value):
        return False
    if is_op(node, "Mul", "Div") and not any(other in given for other in node.inputs if other is not value):
        return False
    array = constant_value(value)
    return array is not None and array.dtype.kind == "f" and bool(array.size) and bool((abs(array) > LOW).any())


def _is_filled_low(node: ir.Node) -> bool:
    filling = node.attributes.get("value") if is_op(node, "ConstantOfShape") else None
    return filling is not None and bool((filling.as_tensor().numpy().astype(np.float64) < -LOW).any())
