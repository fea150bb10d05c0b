"""The work of one run of a network on one sample: multiplications, and numbers that are written."""

import math
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.operators import LINEAR


@dataclass(frozen=True, kw_only=True)
class Work:
    """Attributes:
    macs: Multiplications of layers, each with its addition.
    numbers: That nodes compute, shape arithmetic apart.
    """

    macs: int
    numbers: int


def work_per_sample(graph: ir.Graph) -> Work:
    """Counted from inferred shapes; an open size, as that of the batch, counts as one."""
    macs = numbers = 0
    for node in graph:
        output = node.outputs[0]
        if output.dtype is not None and not output.dtype.is_floating_point():
            continue
        computed = sum(_size(value) for value in node.outputs)
        numbers += computed
        macs += macs_of(node)
    return Work(macs=macs, numbers=numbers)


def macs_of(node: ir.Node) -> int:
    """Multiplications of a layer per sample; 0 of any other node."""
    return _size(node.outputs[0]) * _terms(node) if node.op_type in LINEAR else 0


def _terms(node: ir.Node) -> int:
    """How many products one number of the output sums, of a ConvTranspose about."""
    weight = node.inputs[1]
    sizes = _sizes(weight)
    if weight is None or len(sizes) < 2:
        return sizes[0] if sizes else 1
    match node.op_type:
        case "Conv":
            return math.prod(sizes[1:])
        case "ConvTranspose":
            strides = node.attributes.get_ints("strides", [1])
            return max(sizes[0] * math.prod(sizes[2:]) // (math.prod(strides) * node.attributes.get_int("group", 1)), 1)
        case "Gemm":
            return sizes[1 if node.attributes.get_int("transB", 0) else 0]
        case _:
            return sizes[-2]


def _size(value: ir.Value | None) -> int:
    return math.prod(_sizes(value))


def _sizes(value: ir.Value | None) -> list[int]:
    shape = None if value is None else value.shape
    return [size if isinstance(size, int) and size > 0 else 1 for size in shape or ()]
