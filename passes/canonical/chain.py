"""`Chain`: several nodes that take the place of one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import FreshNames, add_initializer, replace_with


class Chain:
    """Nodes in the place of one: each reads, as a rule, what the one before it computes."""

    def __init__(self, graph: ir.Graph, old: ir.Node, names: FreshNames) -> None:
        self._graph, self._old, self._names = graph, old, names
        self._nodes: list[ir.Node] = []

    @property
    def op_types(self) -> list[str]:
        """In order."""
        return [node.op_type for node in self._nodes]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, ir.Attr] | None = None,
        *,
        dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> ir.Value:
        """One more node; its output."""
        base = f"{self._old.name or self._old.op_type}.{op_type}"
        node = ir.node(op_type, inputs, name=self._names(base))
        node.attributes.update(attributes or {})
        node.outputs[0].name = self._names(f"{base}_output")
        node.outputs[0].dtype = dtype
        self._nodes.append(node)
        return node.outputs[0]

    def number(self, value: float) -> ir.Value:
        """A scalar as an initializer."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> ir.Value:
        """A list of integers as an initializer."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """An initializer."""
        return add_initializer(self._graph, self._names(f"{self._old.name}.constant"), array)

    def finish(self) -> None:
        """The last node takes the place of the old one."""
        for node in self._nodes[:-1]:
            self._graph.insert_before(self._old, node)
        replace_with(self._old, self._nodes[-1])

    def give_up(self) -> None:
        """No node of the chain reads anything any more, so that readers can be counted."""
        for node in self._nodes:
            node.resize_inputs(0)


def input_slots(node: ir.Node, count: int) -> list[ir.Value | None]:
    """The first inputs of a node; None where one is left out."""
    return [*node.inputs, *[None] * count][:count]
