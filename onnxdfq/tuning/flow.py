"""The way of the data through a graph, and its regions of one entry and one exit (dominators of the flow graph)."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.analysis import analyze_implicit_usage

from passes.graph.bodies import subgraphs

# Of these inputs only the shape or the type is read.
_READS_NO_DATA = {"Shape": (0,), "Size": (0,), "CastLike": (1,)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """What lies between a value and the node where its branches join.

    nodes: in graph order, the joining node last. leak: why it is no region of one entry and one exit, None if it is.
    """

    entry: ir.Value
    exit: ir.Value
    nodes: tuple[ir.Node, ...]
    leak: str | None = None

    @property
    def join(self) -> ir.Node:
        """The node that gives the exit."""
        return self.nodes[-1]


class Flow:
    """Which nodes of the main graph carry data, and who reads whom; the graph must not change meanwhile.

    Data is what depends on the numbers of a graph input; shapes, and what is computed from constants alone, are not.
    A value that a subgraph reads counts as read by the node that holds the subgraph.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.position = {node: index for index, node in enumerate(graph)}
        captured = analyze_implicit_usage(graph)
        self._captured = {
            node: [value for subgraph in inner for value in sorted(captured[subgraph], key=str) if value.graph is graph]
            for node in graph
            if (inner := subgraphs(node))
        }
        self._data: dict[ir.Value, None] = dict.fromkeys(v for v in graph.inputs if not v.is_initializer())
        self._sources: dict[ir.Node, tuple[ir.Value, ...]] = {}
        self._readers: dict[ir.Value, list[ir.Node]] = {}
        # The dominator tree over nodes and graph inputs; None is where all graph inputs come from.
        self._above: dict[ir.Node | ir.Value, ir.Node | ir.Value | None] = dict.fromkeys(self._data)
        self._depth: dict[ir.Node | ir.Value, int] = dict.fromkeys(self._data, 1)
        for node in graph:
            self._add(node)
        self.nodes = tuple(self._sources)

    def _add(self, node: ir.Node) -> None:
        direct = [value for index, value in enumerate(node.inputs) if not _skips(node, index)]
        read = [*direct, *self._captured.get(node, ())]
        sources = tuple(dict.fromkeys(value for value in read if value in self._data))
        if not sources:
            return
        self._sources[node] = sources
        for value in sources:
            self._readers.setdefault(value, []).append(node)
        self._data.update(dict.fromkeys(node.outputs))
        meeting: ir.Node | ir.Value | None = _origin(sources[0])
        for value in sources[1:]:
            meeting = self._common(meeting, _origin(value))
        self._above[node] = meeting
        self._depth[node] = 1 + (0 if meeting is None else self._depth[meeting])

    def _common(self, one: ir.Node | ir.Value | None, other: ir.Node | ir.Value | None) -> ir.Node | ir.Value | None:
        while one is not other:
            if one is None or other is None:
                return None
            if self._depth[one] >= self._depth[other]:
                one = self._above[one]
            else:
                other = self._above[other]
        return one

    def sources(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The different data values that `node` reads; none for a node that carries no data."""
        return self._sources.get(node, ())

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that read the numbers of `value`."""
        return self._readers.get(value, [])

    def leaves(self, value: ir.Value, nodes: Iterable[ir.Node]) -> str | None:
        """Where else than to `nodes` the value goes, in words; None if nowhere."""
        if value.is_graph_output():
            return f"'{value.name}' leaves the graph"
        inside = set(nodes)
        outside = next((node for node in self.readers(value) if node not in inside), None)
        return None if outside is None else f"{outside.op_type} '{outside.name}' reads '{value.name}' too"

    def before(self, one: ir.Value, other: ir.Value) -> bool:
        """Whether all ways to `other` lead through the node that gives `one`."""
        origin: ir.Node | ir.Value | None = _origin(other)
        while origin is not None and origin is not _origin(one):
            origin = self._above[origin]
        return origin is not None

    def regions(self) -> list[Region]:
        """One for each node with one output that joins branches of one value, in graph order of the join."""
        found = []
        for node, sources in self._sources.items():
            exits = [value for value in node.outputs if self.readers(value) or value.is_graph_output()]
            entry = self._entry(node) if len(sources) > 1 and len(exits) == 1 else None
            if entry is not None:
                found.append(self._region(entry, exits[0]))
        return found

    def _entry(self, join: ir.Node) -> ir.Value | None:
        above = self._above[join]
        while isinstance(above, ir.Node) and len(above.outputs) > 1:  # branches that begin with a Split
            above = self._above[above]
        return above.outputs[0] if isinstance(above, ir.Node) else above

    def _region(self, entry: ir.Value, exit: ir.Value) -> Region:
        join = exit.producer()
        assert join is not None
        members, waiting = {join}, [join]
        while waiting:
            for value in self._sources[waiting.pop()]:
                producer = value.producer()
                if value is not entry and producer is not None and producer not in members:
                    members.add(producer)
                    waiting.append(producer)
        nodes = tuple(sorted(members, key=self.position.__getitem__))
        inner = (value for node in nodes for value in node.outputs if value is not exit)
        leak = next((leak for value in inner if (leak := self.leaves(value, members)) is not None), None)
        return Region(entry=entry, exit=exit, nodes=nodes, leak=leak)

    def support(self, entry: ir.Value, nodes: Iterable[ir.Node]) -> tuple[tuple[ir.Node, ...], str | None]:
        """The nodes beside `nodes` that these need (shapes, arithmetic on constants); what else they need, in words."""
        inside = set(nodes)
        given = {entry, *(value for node in inside for value in node.outputs)}
        found: dict[ir.Node, None] = {}
        waiting = list(inside)
        while waiting:
            node = waiting.pop()
            for value in (*node.inputs, *self._captured.get(node, ())):
                if value is None or value in given or value.is_initializer():
                    continue
                producer = value.producer()
                if producer is None or value in self._data:
                    return (), f"{node.op_type} '{node.name}' needs '{value.name}' as well"
                if producer not in found:
                    found[producer] = None
                    waiting.append(producer)
        return tuple(found), None


def _origin(value: ir.Value) -> ir.Node | ir.Value:
    producer = value.producer()
    return value if producer is None else producer


def _skips(node: ir.Node, index: int) -> bool:
    return node.domain in ("", "ai.onnx") and index in _READS_NO_DATA.get(node.op_type, ())
