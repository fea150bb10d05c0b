"""Reconstruction blocks, from the graph's own shape: what AdaRound and BRECQ tune as one."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx_ir as ir

from onnxdfq.tuning.flow import Flow, Region
from passes.graph.editing import is_op, name_of, static_dims
from passes.graph.filters import is_depthwise
from passes.graph.operators import CURVES, ELEMENTWISE, NORMALIZATIONS, POINTWISE
from passes.quantize.points import scales_channels, weight_uses

Kind = Literal["residual", "inverted residual", "dense", "plain", "transformer"]

MOST_LAYERS = 10  # an Inception module has that many; more do not fit into one least-squares problem of 1,000 images
ACTIVATIONS = CURVES - {"Erf"}  # which is a part of GELU, and no function that a target computes with a layer
# RMSNormalization and LpNormalization have no row in TRAITS: no target's kernels are known to take them.
_NORMALIZATIONS = NORMALIZATIONS | {"LpNormalization", "RMSNormalization"}
_POINTWISE = (POINTWISE - {"Log"}) | ELEMENTWISE | _NORMALIZATIONS  # Log has not been tried behind a block


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of the graph with one way in and one way out.

    entry, exit: value names; others may read the entry too, nobody outside reads what lies between. nodes: names in
    graph order; these and initializers are all that is needed to compute the exit from the entry (arithmetic on
    constants may so belong to several blocks). weights: the initializers that its linear operators multiply with, but
    for those that scale channels. fallback: a sentence why this part of the graph gave single layers instead of a
    larger block; empty if it did not.
    """

    entry: str
    exit: str
    kind: Kind
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    fallback: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """A block in the making. layers: its weighted nodes. main: how many of them stand outside of gates."""

    entry: ir.Value
    exit: ir.Value
    nodes: tuple[ir.Node, ...]
    layers: tuple[ir.Node, ...]
    main: int = 1
    join: ir.Node | None = None
    fallback: str = ""

    @property
    def gate(self) -> bool:
        """Whether it multiplies its entry with what it computes of it: squeeze-and-excitation."""
        return is_op(self.join, "Mul") and self.join is not None and self.entry in self.join.inputs


def find_layers(model: ir.Model) -> tuple[Block, ...]:
    """One block for each operator with a weight, with the activation function that alone reads it; in graph order.

    An operator that reads two computed values (a Gemm that adds one) is none, and one that only scales channels is
    taken for a normalization.

    Args:
        model: Float, canonical, BatchNormalization folded; it is only read.
    """
    flow = Flow(model.graph)
    return tuple(_block(flow, _with_activation(flow, part)) for part in _layers(flow))


def find_blocks(model: ir.Model) -> tuple[Block, ...]:
    """Blocks that hold every operator of `find_layers` once, in graph order.

    1. Branches that begin at one value and join in one node are one block: a residual block (BRECQ, arXiv 2102.05426,
       section 3.2), a dense or Inception module, attention; with at most 10 layers, and not if smaller ones lie in it
       in a row. An activation function or normalization right behind it belongs to it.
    2. Of the other layers each is one; a depthwise convolution goes with the pointwise one after it, and with the
       pointwise one before it that widens if the last has no activation function (an inverted residual block without
       skip). Squeeze-and-excitation goes with the layer before it.
    3. Layers between branches that make no block by 1 come one by one; `fallback` says why.

    A Reshape or Transpose right before a block belongs to it: inside of a channel shuffle no axis is that of images.

    Args:
        model: As for `find_layers`.
    """
    flow = Flow(model.graph)
    regions = flow.regions()
    weighted = [region for region in regions if any(map(_is_layer, region.nodes))]
    parts: list[_Part] = []
    refused: list[tuple[Region, str]] = []
    taken: set[ir.Node] = set()
    for region in sorted(weighted, key=lambda region: len(region.nodes), reverse=True):
        if not taken.isdisjoint(region.nodes):
            continue
        if (reason := _obstacle(flow, region, weighted)) is not None:
            refused.append((region, reason))
            continue
        taken.update(region.nodes)
        layers = tuple(node for node in region.nodes if _is_layer(node))
        parts.append(
            _Part(
                entry=region.entry,
                exit=region.exit,
                nodes=region.nodes,
                layers=layers,
                main=len(layers),
                join=region.join,
            )
        )
    parts.extend(
        replace(part, fallback=_reason(part, refused)) for part in _layers(flow) if taken.isdisjoint(part.nodes)
    )
    trailing = [region for region in regions if region.leak is None and _is_pointwise(region.nodes, "ReduceMean")]
    parts = [_with_pointwise(flow, part, trailing) for part in parts]
    for rule in (_gates, _separable, _inverted):
        parts = _merged(flow, parts, rule)
    return tuple(_block(flow, part) for part in sorted(parts, key=lambda part: flow.position[part.layers[0]]))


def _reason(part: _Part, refused: Sequence[tuple[Region, str]]) -> str:
    """What says most: of the innermost region with one entry and one exit, else of the innermost of all."""
    reasons = [(region.leak is None, reason) for region, reason in refused if part.layers[0] in region.nodes]
    closed = [reason for is_closed, reason in reasons if is_closed]
    return closed[-1] if closed else reasons[-1][1] if reasons else ""


def _obstacle(flow: Flow, region: Region, regions: Sequence[Region]) -> str | None:
    """Why a region is no block."""
    title = f"The part from '{region.entry.name}' to '{region.exit.name}' is tuned layer by layer"
    if region.leak is not None:
        return f"{title}: {region.leak}."
    if (missing := flow.support(region.entry, region.nodes)[1]) is not None:
        return f"{title}: {missing}."
    layers = sum(map(_is_layer, region.nodes))
    if layers > MOST_LAYERS:
        return f"{title}: it has {layers} layers, and a block has at most {MOST_LAYERS}."
    members = set(region.nodes)
    within = [
        inner
        for inner in regions
        if inner is not region and inner.leak is None and is_op(inner.join, "Add", "Concat") and inner.join in members
    ]
    for first in within:
        for second in within:
            if first is not second and flow.before(first.exit, second.entry):
                return f"{title} beside the smaller blocks in it: several follow one another."
    return None


def _layers(flow: Flow) -> list[_Part]:
    found = []
    for node in flow.nodes:
        sources = flow.sources(node)
        if _is_layer(node) and len(sources) == 1:
            found.append(_Part(entry=sources[0], exit=node.outputs[0], nodes=(node,), layers=(node,)))
    return found


def _with_activation(flow: Flow, part: _Part) -> _Part:
    """The layer and the one activation function that a target computes together with it."""
    readers = flow.readers(part.exit)
    if part.exit.is_graph_output() or len(readers) != 1 or not is_op(readers[0], *ACTIVATIONS):
        return part
    return _grown(flow, part, readers, readers[0].outputs[0]) or part


def _with_pointwise(flow: Flow, part: _Part, trailing: Sequence[Region]) -> _Part:
    """The part and what works point by point right behind it, in branches (SiLU, a normalization in pieces) or not."""
    while True:
        readers = set(flow.readers(part.exit))
        grown = None
        if part.exit.is_graph_output() or not readers:
            return part
        if len(readers) == 1 and _is_pointwise(readers):
            (reader,) = readers
            grown = _grown(flow, part, (reader,), reader.outputs[0])
        for region in trailing:
            if grown is None and region.entry is part.exit and readers <= set(region.nodes):
                grown = _grown(flow, part, region.nodes, region.exit)
        if grown is None:
            return part
        part = grown


def _is_pointwise(nodes: Iterable[ir.Node], *more: str) -> bool:
    return all(is_op(node, *_POINTWISE, *more) or scales_channels(node) for node in nodes)


def _is_layer(node: ir.Node) -> bool:
    """How the weights that scale channels are rounded is not worth a choice."""
    return bool(weight_uses(node)) and not scales_channels(node)


def _grown(flow: Flow, part: _Part, nodes: Sequence[ir.Node], exit: ir.Value) -> _Part | None:
    """None where the nodes need more than the exit of `part`, or give more than `exit`."""
    extra = any(flow.readers(value) or value.is_graph_output() for value in nodes[-1].outputs if value is not exit)
    if extra or flow.support(part.exit, nodes)[1] is not None:
        return None
    return replace(part, nodes=(*part.nodes, *nodes), exit=exit)


def _merged(flow: Flow, parts: Sequence[_Part], rule: Callable[[_Part, _Part], bool]) -> list[_Part]:
    """Where `rule` holds of a part and the only reader of its exit, the two are one."""
    by_exit = {part.exit: part for part in parts}
    for second in sorted(parts, key=lambda part: flow.position[part.layers[0]]):
        first = by_exit.get(second.entry)
        if (
            first is None
            or flow.leaves(first.exit, second.nodes) is not None
            or len(first.layers) + len(second.layers) > MOST_LAYERS
            or not rule(first, second)
        ):
            continue
        del by_exit[first.exit]
        by_exit[second.exit] = replace(
            first,
            exit=second.exit,
            nodes=(*first.nodes, *second.nodes),
            layers=(*first.layers, *second.layers),
            main=first.main + (0 if second.gate else second.main),
        )
    return list(by_exit.values())


def _gates(first: _Part, second: _Part) -> bool:
    return second.gate


def _separable(first: _Part, second: _Part) -> bool:
    """Depthwise, then pointwise."""
    plain = first.join is None and second.join is None and first.main == second.main == 1
    return plain and is_depthwise(first.layers[0]) and _is_pointwise_convolution(second.layers[0])


def _inverted(first: _Part, second: _Part) -> bool:
    """Pointwise that widens, then depthwise and pointwise without an activation function."""
    return (
        first.join is None
        and second.join is None
        and (first.main, second.main) == (1, 2)
        and _is_pointwise_convolution(first.layers[0], widening=True)
        and is_depthwise(second.layers[0])
        and second.exit is second.layers[-1].outputs[0]
    )


def _is_pointwise_convolution(node: ir.Node, *, widening: bool = False) -> bool:
    sizes = static_dims(node.inputs[1]) if is_op(node, "Conv") else None
    plain = sizes is not None and node.attributes.get_int("group", 1) == 1 and all(n == 1 for n in sizes[2:])
    return plain and sizes is not None and (not widening or sizes[0] > sizes[1])


def _kind(part: _Part) -> Kind:
    multiplies_data = any(is_op(node, "MatMul") and not weight_uses(node) for node in part.nodes)
    attends = multiplies_data and any(is_op(node, "Softmax") for node in part.nodes)
    if attends or any(is_op(node, "Attention", "LayerNormalization", "RMSNormalization") for node in part.nodes):
        return "transformer"
    depthwise = any(map(is_depthwise, part.layers))
    if is_op(part.join, "Add", "Sub", "Sum"):
        return "inverted residual" if depthwise else "residual"
    if is_op(part.join, "Concat"):
        return "dense"
    return "inverted residual" if depthwise and not is_depthwise(part.layers[0]) else "plain"


def _with_moves(flow: Flow, part: _Part) -> _Part:
    """The part with the Reshape and Transpose that give nobody else its entry."""
    while True:
        producer = part.entry.producer()
        if not is_op(producer, "Reshape", "Transpose") or flow.leaves(part.entry, part.nodes) is not None:
            return part
        assert producer is not None
        sources, nodes = flow.sources(producer), (producer, *part.nodes)
        if len(sources) != 1 or flow.support(sources[0], nodes)[1] is not None:
            return part
        part = replace(part, entry=sources[0], nodes=nodes)


def _block(flow: Flow, part: _Part) -> Block:
    part = _with_moves(flow, part)
    support, missing = flow.support(part.entry, part.nodes)
    assert missing is None, missing
    nodes = sorted({*part.nodes, *support}, key=flow.position.__getitem__)
    return Block(
        entry=name_of(part.entry),
        exit=name_of(part.exit),
        kind=_kind(part),
        nodes=tuple(map(name_of, nodes)),
        weights=tuple(use.initializer for node in part.layers for use in weight_uses(node)),
        fallback=part.fallback,
    )
