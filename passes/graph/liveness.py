"""Which values are still needed at a point of a graph."""

from collections.abc import Iterable
from itertools import chain, islice

import onnx_ir as ir

from passes.graph.bodies import captured_values


class Liveness:
    """Where each value of a graph is read last; the graph must not change meanwhile.

    Args:
        graph: In topological order.
        outputs: Values that are needed at its end, whoever reads them.
    """

    def __init__(self, graph: ir.Graph, outputs: Iterable[ir.Value]) -> None:
        self._graph = graph
        self._last_read = {
            value: place
            for place, node in enumerate(graph)
            for value in (*node.inputs, *captured_values(node))
            if value is not None
        }
        self._last_read |= dict.fromkeys(outputs, len(graph))

    def alive(self, point: int) -> list[str]:
        """Names of inputs and of values computed before the node at `point` that it, or a later one, reads, or that are
        needed at the end; no initializers."""
        nodes = islice(self._graph, point)
        made = chain(self._graph.inputs, chain.from_iterable(node.outputs for node in nodes))
        return [
            value.name or "" for value in made if self._last_read.get(value, -1) >= point and not value.is_initializer()
        ]
