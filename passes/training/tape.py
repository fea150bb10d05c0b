"""`Tape`: what rules of differentiation write their nodes with."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from passes.graph.editing import FreshNames, add_initializer, constant_value, name_of, node_titles

Gradient: TypeAlias = Callable[[], ir.Value]
"""Makes the nodes of one input's gradient: only of those that somebody wants."""
Gradients: TypeAlias = Sequence[Gradient | None]
"""Of a node's inputs, in order; None, or nothing at the end, where there is none: shapes, axes, indices, bounds."""
Outputs: TypeAlias = Sequence[ir.Value | None]
"""Gradients of a node's outputs, in order; None where nothing depends on one."""
Rule: TypeAlias = Callable[["Tape", ir.Node, Outputs], Gradients]
"""(tape, node, gradients of its outputs) → gradients of its inputs."""
Table: TypeAlias = Mapping[str, Rule]
"""Rules by the name of the ONNX operator."""


class NotDifferentiable(ValueError):
    """A node stands between the loss and a parameter, and has no gradient; the message names it and says why."""


class Tape:
    """Appends nodes to a graph, each under a fresh name; constants of equal bytes are one initializer.

    Args:
        graph: Sorted, with inferred shapes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = FreshNames(graph)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._titles = node_titles(graph)

    def op(self, op_type: str, *inputs: ir.Value | None, name: str | None = None, **attributes: object) -> ir.Value:
        """The output of a new node. name: of the output, which must be fresh; by default one of the tape's own."""
        found = name or self._names(f"step_{op_type}")
        known = {key: value for key, value in attributes.items() if value is not None}
        node = ir.node(op_type, inputs, known, name=found)  # type: ignore[arg-type]
        node.outputs[0].name = found
        self.graph.append(node)
        return node.outputs[0]

    def outputs(self, op_type: str, *inputs: ir.Value, count: int, **attributes: object) -> Sequence[ir.Value]:
        """The outputs of a new node that has several."""
        node = ir.node(op_type, inputs, attributes, num_outputs=count, name=self._names(f"step_{op_type}"))  # type: ignore[arg-type]
        for value in node.outputs:
            value.name = self._names(f"{node.name}_output")
        self.graph.append(node)
        return node.outputs

    def constant(self, array: ArrayLike, dtype: type[np.generic] = np.float32) -> ir.Value:
        """An initializer with these numbers."""
        found = np.asarray(array, dtype)
        key = (found.dtype.str, found.shape, found.tobytes())
        if key not in self._constants:
            self._constants[key] = add_initializer(self.graph, self._names("step_constant"), found)
        return self._constants[key]

    def integers(self, *numbers: int) -> ir.Value:
        """(n,) int64, as shapes and axes are given."""
        return self.constant(numbers, np.int64)

    def where(self, condition: ir.Value, value: ir.Value) -> ir.Value:
        """`value` where the condition holds, zero elsewhere."""
        return self.op("Where", condition, value, self.constant(0.0))

    def sum_to(self, value: ir.Value, source: ir.Node, target: ir.Value | None) -> ir.Value:
        """The gradient of an operand that was broadcast: summed over the axes along which it was repeated.

        Args:
            value: In the shape of the first output of `source`.
            source: Which broadcast.
            target: The operand.
        """
        whole, part = self.sizes(source, source.outputs[0]), self.sizes(source, target)
        extra = len(whole) - len(part)
        axes = [
            axis for axis, size in enumerate(whole) if axis < extra or (part[axis - extra] == 1 and size != 1)
        ]  # a free size is that of the batch, which both have
        if not axes:
            return value
        summed = self.op("ReduceSum", value, self.integers(*axes), keepdims=1)
        return self.op("Squeeze", summed, self.integers(*range(extra))) if extra else summed

    def shaped_as(self, value: ir.Value, target: ir.Value) -> ir.Value:
        """The same numbers in the shape of `target`."""
        return self.op("Reshape", value, self.shape(target, reshaping=True))

    def repeated_to(self, value: ir.Value, target: ir.Value) -> ir.Value:
        """Broadcast to the shape of `target`."""
        return self.op("Expand", value, self.shape(target))

    def shape(self, value: ir.Value, *, reshaping: bool = False) -> ir.Value:
        """(rank,) int64; a constant where it is known, or one -1 does for a Reshape."""
        sizes = [] if value.shape is None else [size if isinstance(size, int) else -1 for size in value.shape]
        free = sizes.count(-1)
        if value.shape is not None and (free == 0 or (reshaping and free == 1 and 0 not in sizes)):
            return self.integers(*sizes)
        return self.op("Shape", value)

    def sizes(self, node: ir.Node, value: ir.Value | None) -> tuple[int | None, ...]:
        """Of a value that `node` reads or gives; None for a free one. Raises NotDifferentiable: nothing is known."""
        if value is None or value.shape is None:
            raise self.refuse(node, f"the shape of {name_of(value)!r} is unknown")
        return tuple(size if isinstance(size, int) else None for size in value.shape)

    def known(self, node: ir.Node, value: ir.Value | None, start: int = 0) -> tuple[int, ...]:
        """Sizes from the axis `start` on. Raises NotDifferentiable: one of them is free."""
        found = self.sizes(node, value)[start:]
        sizes = tuple(size for size in found if size is not None)
        if len(sizes) < len(found):
            raise self.refuse(node, f"the sizes of {name_of(value)!r} are free; give them with --input-shape")
        return sizes

    def numbers(self, node: ir.Node, slot: int, attribute: str = "") -> NDArray[np.generic] | None:
        """Of a constant input, or of the attribute that older opsets have instead; None where there is neither.

        Raises:
            NotDifferentiable: The input is computed.
        """
        value = node.inputs[slot] if slot < len(node.inputs) else None
        if value is None:
            found = node.attributes.get(attribute)
            return None if found is None else np.asarray(found.value)
        array = constant_value(value)
        if array is None:
            raise self.refuse(node, f"its input {name_of(value)!r} is computed while it runs")
        return np.asarray(array)

    def refuse(self, node: ir.Node, why: str) -> NotDifferentiable:
        """The error about a node."""
        title = self._titles.get(node) or name_of(node)
        return NotDifferentiable(f"{node.op_type} {title!r} cannot be differentiated: {why}")


def present(value: ir.Value | None) -> ir.Value:
    """A value that a valid graph does not lack."""
    assert value is not None
    return value


def count_of(sizes: Sequence[int]) -> int:
    """How many numbers a tensor of these sizes holds."""
    return math.prod(sizes)


def axes_of(tape: Tape, node: ir.Node, slot: int = 1) -> tuple[int, ...]:
    """The axes that a reduction, a Squeeze or an Unsqueeze names, from the front; all where it names none."""
    given = tape.numbers(node, slot, "axes")
    unsqueezes = node.op_type == "Unsqueeze"
    rank = len(tape.sizes(node, node.outputs[0] if unsqueezes else node.inputs[0]))
    if given is None or (given.size == 0 and not node.attributes.get_int("noop_with_empty_axes", 0)):
        return tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in given.reshape(-1)))
