"""Parts of very different ranges that a Concat puts together at the end of a network: boxes and scores.

On one grid of 8 bits boxes of 640 pixels have steps of 4, and nothing is left of scores between 0 and 1. No layer reads
these values, so they cost next to nothing in float: a Concat of such parts stays float, and what computes them behind
the last layers with it, as boxes lose pixels in each of its roundings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.bodies import subgraphs
from passes.graph.editing import constant_value, is_op, name_of
from passes.graph.operators import LINEAR, NORMALIZATIONS, POOLS
from passes.quantize.points import ACTIVATION_DTYPE, QuantPoints

LEAST_STEPS = 16  # that the grid of all leaves for the part of the smallest range
# What takes long enough to be worth integers, or has a state.
_COMPUTES = LINEAR | POOLS | NORMALIZATIONS | {"Einsum", "GRU", "LSTM", "RNN", "Resize", "Upsample"}


@dataclass(frozen=True, kw_only=True)
class Join:
    """A Concat at the end of a network. ranges: by name of a part, its largest magnitude."""

    node: str
    ranges: Mapping[str, float]


def joins_apart(
    model: ir.Model, points: QuantPoints, ranges: Mapping[str, float], widths: Mapping[str, int]
) -> tuple[list[Join], frozenset[str]]:
    """Concats of parts that one grid does not suit, between the last layers and the outputs.

    Args:
        model: Float, with names.
        points: Of that model.
        ranges: By value name, the largest magnitude that calibration saw.
        widths: By name of what has a grid of its own, its bits; a Concat without stays as it is.

    Returns:
        The Concats in graph order, and the names of the nodes that stay float for them.
    """
    roots = {name: name for name in points.activations} | dict(points.same_as)
    tail = _behind_layers(model.graph)
    found = []
    for node in model.graph:
        bits = widths.get(roots.get(name_of(node.outputs[0]), ""))
        if node in tail and is_op(node, "Concat") and bits is not None:
            join = Join(node=name_of(node), ranges=_ranges(node, roots, ranges))
            if join.ranges and max(join.ranges.values()) * LEAST_STEPS > min(join.ranges.values()) * 2**bits:
                found.append(join)
    kept = _kept(model.graph, tail, {join.node for join in found}, roots)
    return [join for join in found if join.node in kept], kept


def _ranges(node: ir.Node, roots: Mapping[str, str], ranges: Mapping[str, float]) -> dict[str, float]:
    """Of the parts of a Concat; without those that are 0 throughout, or that nobody saw."""
    sizes = {}
    for value in node.inputs:
        name, array = name_of(value), constant_value(value)
        sizes[name] = ranges.get(roots.get(name, ""), 0.0) if array is None else float(abs(array).max(initial=0.0))
    return {name: size for name, size in sizes.items() if size > 0}


def _behind_layers(graph: ir.Graph) -> set[ir.Node]:
    """Nodes behind which nothing comes any more that takes long."""
    found: set[ir.Node] = set()
    for node in reversed(graph):
        light = node.op_type not in _COMPUTES and not subgraphs(node)
        if light and all(use.node in found for value in node.outputs for use in value.uses()):
            found.add(node)
    return found


def _kept(graph: ir.Graph, tail: set[ir.Node], joins: set[str], roots: Mapping[str, str]) -> frozenset[str]:
    """Names of the joins, of what in the tail they are computed by, and of all that is computed by these; but for what
    a kernel for integers computes along with a layer."""
    wanted: set[ir.Node] = set()
    for node in reversed(graph):
        read = any(use.node in wanted for value in node.outputs for use in value.uses())
        if node in tail and (read or name_of(node) in joins):
            wanted.add(node)
    kept: set[ir.Node] = set()
    for node in graph:
        read_from = {value: value.producer() for value in node.inputs if value is not None and _is_data(value)}
        if node not in tail or not any(map(_is_data, node.outputs)):
            continue
        if node not in wanted and not any(producer in kept for producer in read_from.values()):
            continue
        if all(producer is None or producer in kept or value.name in roots for value, producer in read_from.items()):
            kept.add(node)
    return frozenset(map(name_of, kept))


def _is_data(value: ir.Value) -> bool:
    return value.dtype == ACTIVATION_DTYPE
