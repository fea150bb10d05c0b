"""Rules of the layers, which make channels: Conv, ConvTranspose, Gemm, MatMul."""

from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Int
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_constant, rank
from passes.prune.classes import Atoms, ChannelAxis
from passes.prune.tracing import Layer, NotFollowed, Traced


def conv(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Weight (O, I/g, taps...)."""
    weight, groups = _weight(node), node.attributes.get_int("group", 1)
    outputs, part = weight.shape[0], weight.shape[1]
    inside = found.along(node, node.inputs[0], 1, part * groups)
    made = found.classes.new(outputs)
    _tie_groups(node, found, inside, made, groups)
    found.hold(node, 1, 0, made)
    if part > 1 or groups == 1:
        found.hold(node, 1, 1, inside[:part])
    return _made(node, found, made)


def conv_transpose(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Weight (I, O/g, taps...)."""
    weight, groups = _weight(node), node.attributes.get_int("group", 1)
    inputs, part = weight.shape[0], weight.shape[1]
    inside = found.along(node, node.inputs[0], 1, inputs)
    made = found.classes.new(part * groups)
    _tie_groups(node, found, inside, made, groups)
    found.hold(node, 1, 0, inside)
    if inputs > groups or groups == 1:
        found.hold(node, 1, 1, made[:part])
    return _made(node, found, made)


def gemm(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Weight (I, O), or (O, I) with transB."""
    weight, transposed = _weight(node), int(bool(node.attributes.get_int("transB", 0)))
    if node.attributes.get_int("transA", 0):
        raise NotFollowed("it reads its input transposed")
    inside = found.along(node, node.inputs[0], 1, weight.shape[transposed])
    made = found.classes.new(weight.shape[1 - transposed])
    found.hold(node, 1, transposed, inside)
    found.hold(node, 1, 1 - transposed, made)
    return _made(node, found, made)


def matmul(node: ir.Node, found: Traced) -> list[ChannelAxis | None]:
    """Channels on the last axis, weight (I, O)."""
    axes = rank(node.inputs[0])
    if not is_constant(node.inputs[1]) or is_constant(node.inputs[0]):
        raise NotFollowed("it multiplies by what the graph computes, or from the left")
    weight = _weight(node)
    if weight.ndim != 2 or axes is None or axes < 2:
        raise NotFollowed("its weight has more axes than two")
    inside = found.along(node, node.inputs[0], axes - 1, weight.shape[0])
    made = found.classes.new(weight.shape[1])
    found.hold(node, 1, 0, inside)
    found.hold(node, 1, 1, made)
    found.layers.append(Layer(node=node, atoms=made))
    return [ChannelAxis(axis=axes - 1, atoms=made)]


def _weight(node: ir.Node) -> NDArray[Any]:
    weight = constant_value(node.inputs[1])
    if weight is None or weight.ndim < 2:
        raise NotFollowed("its weight is computed by the graph")
    return weight


def _tie_groups(node: ir.Node, found: Traced, inside: Int[Atoms, "i"], made: Int[Atoms, "o"], groups: int) -> None:
    """Of grouped layers the groups stay equal: where one has one input, it goes with all that it makes; where it has
    several, the same places go in every group."""
    if groups == 1:
        return
    reads, makes = inside.reshape(groups, -1), made.reshape(groups, -1)
    if reads.shape[1] == 1:
        found.classes.unite(makes, np.broadcast_to(reads, makes.shape))
        found.count(node, None, 0, inside)
        return
    for atoms in (reads, makes):
        found.classes.unite(atoms, np.broadcast_to(atoms[:1], atoms.shape))


def _made(node: ir.Node, found: Traced, made: Int[Atoms, "o"]) -> list[ChannelAxis | None]:
    """The output, with a bias where there is one."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is not None:
        bias = constant_value(value)
        if bias is None:
            raise NotFollowed("its bias is computed by the graph")
        if bias.ndim and bias.shape[-1] == len(made):
            found.hold(node, 2, bias.ndim - 1, made)
        elif bias.size != 1:
            raise NotFollowed("its bias differs by more than the channel")
    found.layers.append(Layer(node=node, atoms=made))
    return [ChannelAxis(axis=1, atoms=made)]
