"""Patterns of what stays float, as names of a graph; and what is left to quantize without it."""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase

import onnx_ir as ir

from passes.graph.bodies import captured_values
from passes.graph.editing import name_of
from passes.target.kept_float import KeptFloat

FORMS = "a name, a glob, type:OPERATOR, before:VALUE or after:VALUE"


class NothingMatches(ValueError):
    """A pattern that fits nothing in the graph. names: of what it could have meant."""

    def __init__(self, pattern: str, names: Iterable[str]) -> None:
        super().__init__(f"{pattern!r} fits nothing in the graph")
        self.pattern = pattern
        self.names = tuple(names)


def kept_float(model: ir.Model, patterns: Iterable[str]) -> KeptFloat:
    """What patterns fit.

    Args:
        model: the graph that is quantized.
        patterns: each one of

            - the name of a node, or of a value or initializer: that alone;
            - a glob ("/head/*"): nodes, and values where it fits no node;
            - "type:Softmax", also as a glob: nodes by their operators;
            - "before:v": all nodes that the value v is computed by; "after:v": all that compute with it.

    Raises:
        NothingMatches: a pattern fits nothing.
    """
    nodes: set[str] = set()
    values: set[str] = set()
    for pattern in patterns:
        found_nodes, found_values = _Patterns(model).found(pattern)
        nodes |= found_nodes
        values |= found_values
    return KeptFloat(nodes=frozenset(nodes), values=frozenset(values))


class _Patterns:
    """The names of a graph."""

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self._graph = graph
        self._nodes = {name_of(node): node for node in graph}
        computed = (value for node in graph for value in node.outputs)
        self._values = {name_of(value): value for value in (*graph.inputs, *graph.initializers.values(), *computed)}

    def found(self, pattern: str) -> tuple[set[str], set[str]]:
        """Names of nodes, and of values."""
        kind, _, name = pattern.partition(":")
        if kind == "type":
            return self._some(pattern, self._of_type(name), {node.op_type for node in self._graph}), set()
        if kind in ("before", "after") and name:
            if name not in self._values:
                raise NothingMatches(pattern, (f"{kind}:{value}" for value in self._values))
            walk = _before if kind == "before" else _after
            return {name_of(node) for node in walk(self._values[name])}, set()
        if pattern in self._nodes:
            return {pattern}, set()
        if pattern in self._values:
            return set(), {pattern}
        if fitting := {name for name in self._nodes if fnmatchcase(name, pattern)}:
            return fitting, set()
        fitting = {name for name in self._values if fnmatchcase(name, pattern)}
        return set(), self._some(pattern, fitting, (*self._nodes, *self._values))

    def _of_type(self, name: str) -> set[str]:
        return {key for key, node in self._nodes.items() if fnmatchcase(node.op_type, name)}

    @staticmethod
    def _some(pattern: str, found: set[str], names: Iterable[str]) -> set[str]:
        if not found:
            raise NothingMatches(pattern, names)
        return found


def _before(value: ir.Value) -> Iterator[ir.Node]:
    producer = value.producer()
    return iter(()) if producer is None else _reached([producer], _producers)


def _after(value: ir.Value) -> Iterator[ir.Node]:
    return _reached([use.node for use in value.uses()], _readers)


def _producers(node: ir.Node) -> list[ir.Node]:
    read = (*node.inputs, *captured_values(node))
    return [producer for value in read if value is not None and (producer := value.producer()) is not None]


def _readers(node: ir.Node) -> list[ir.Node]:
    return [use.node for value in node.outputs for use in value.uses()]


def _reached(waiting: list[ir.Node], beside: Callable[[ir.Node], list[ir.Node]]) -> Iterator[ir.Node]:
    """Each node once."""
    seen: set[ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(beside(node))
            yield node
