"""What OpenVINO's kernels hand on as integers, as its element-wise ones ask for."""

import onnx_ir as ir

from passes.graph.editing import is_constant, is_op, producer_within, sole_consumer, static_dims
from passes.graph.operators import LINEAR, POOLS, SELECTIONS

QUANTIZERS = ("QuantizeLinear", "Clip", "DequantizeLinear")


def written_as_integers(
    value: ir.Value, graph: ir.Graph | ir.Function | None, known: dict[ir.Value, bool | None]
) -> bool | None:
    """Whether a kernel before writes `value` as integers: a layer, or one that itself reads nothing but integers.

    None: it follows from constants alone. graph: whose kernels those are; what lies outside is not looked at.
    """
    waiting = [value]
    while waiting:
        last = waiting[-1]
        producer = producer_within(graph, last)
        if last in known:
            pass
        elif is_constant(last):
            known[last] = None
        elif producer is None or is_op(producer, "Shape", "Size"):
            known[last] = False
        elif is_op(producer, *LINEAR, *POOLS, "Concat"):
            known[last] = True
        elif is_op(producer, *SELECTIONS) and (first := producer.inputs[0]) and is_op(first.producer(), *QUANTIZERS):
            known[last] = True  # a kernel of its own, behind the Quantize
        else:
            first_only = is_op(producer, *QUANTIZERS, *SELECTIONS, "CastLike")
            data = [entry for entry in producer.inputs[: 1 if first_only else None] if entry is not None]
            if ahead := [entry for entry in data if entry not in known]:
                waiting.extend(ahead)
                continue
            parts = [known[entry] for entry in data]
            known[last] = None if all(part is None for part in parts) else all(part is not False for part in parts)
        waiting.pop()
    return known[value]


def joins_constant_in_float(node: ir.Node) -> bool:
    """Whether a Concat stays float for a constant among its inputs, onto which the pair behind it is then not moved.

    So it is where the integers are clipped (fewer than 8 bits), and where a Conv reads them; else it was moved (tried).
    """
    if not is_op(node, "Concat"):
        return False
    behind = sole_consumer(node.outputs[0])
    while behind is not None and is_op(behind, "QuantizeLinear", "DequantizeLinear"):
        behind = sole_consumer(behind.outputs[0])
    # what follows is looked at first: whether an input is fixed is asked of all that it follows from
    return is_op(behind, "Clip", "Conv") and any(value is not None and _is_fixed(value) for value in node.inputs)


def follows_float_concat(value: ir.Value) -> bool:
    """Whether a pair alone lies between it and such a Concat. What reads it writes integers again."""
    producer = value.producer()
    while producer is not None and is_op(producer, *QUANTIZERS) and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and joins_constant_in_float(producer)


def _is_fixed(value: ir.Value) -> bool:
    """Whether it follows from constants, and from shapes that the file tells, alone."""
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        last = waiting.pop()
        producer = last.producer()
        if last in seen or is_constant(last):
            continue
        if producer is None:
            return False
        seen.add(last)
        if is_op(producer, "Shape", "Size"):
            if producer.inputs[0] is None or static_dims(producer.inputs[0]) is None:
                return False
            continue
        waiting += [each for each in producer.inputs if each is not None]
    return True
