"""How many images lie in memory together: as many as a budget of bytes allows."""

import math

import onnx_ir as ir

BATCH_BYTES = 2**24  # what the values of one batch may take; with more, which no cache holds, convolutions are slower


def images_within(model: ir.Model, budget: int, *, keeps_all: bool = False) -> int:
    """How many images may run at once; at least one.

    Args:
        model: With inferred shapes. A size that is not known counts as one.
        budget: Bytes of values that are in memory together.
        keeps_all: Whether all values stay, as a gradient asks for, and not only those that are read again.
    """
    sizes = {value: _bytes(value) for node in model.graph for value in node.outputs}
    sizes |= {value: _bytes(value) for value in model.graph.inputs}
    if keeps_all:
        return max(budget // max(sum(sizes.values()), 1), 1)
    last_reader = {value: node for node in model.graph for value in node.inputs if value in sizes}
    alive = most = sum(sizes[value] for value in model.graph.inputs)
    for node in model.graph:
        alive += sum(sizes[value] for value in node.outputs)
        most = max(most, alive)
        alive -= sum(sizes[value] for value in {*node.inputs} if value in sizes and last_reader[value] is node)
    return max(budget // max(most, 1), 1)


def bytes_behind(model: ir.Model) -> dict[str, int]:
    """Value name → bytes of what is computed after it for one image: about the work that is left. Args as above."""
    behind, total = {}, 0
    for node in reversed(model.graph):
        for value in node.outputs:
            behind[value.name or ""] = total
        total += sum(map(_bytes, node.outputs))
    return behind | {value.name or "": total for value in model.graph.inputs}


def _bytes(value: ir.Value) -> int:
    """Of one image's share of a value: without its first size, that of the batch."""
    known = [size for size in tuple(value.shape or ())[1:] if isinstance(size, int)]
    sized = value.dtype is not None and value.dtype not in (ir.DataType.STRING, ir.DataType.UNDEFINED)
    return math.ceil(math.prod(known) * (value.dtype.itemsize if sized and value.dtype is not None else 4))
