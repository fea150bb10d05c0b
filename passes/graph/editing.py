"""Helpers to read and edit an onnx-ir graph: names, constants, consumers, substitution."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

IDENTITIES = 8  # that `constant_value` looks through: a chain of them is walked once for each value in it


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is one of these operators of the ONNX domain."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def name_of(found: ir.Value | ir.Node | None) -> str:
    """The name of a value or a node; "" where there is none, so that a look-up by name finds nothing."""
    return "" if found is None else found.name or ""


def required_name(found: ir.Value | ir.Node | None) -> str:
    """The name of a value or a node that has to have one. Raises ValueError where it, or its name, is absent."""
    if found is None:
        raise ValueError("an input that has to be there is left out; run Canonicalize first")
    if not found.name:
        raise ValueError(f"a {type(found).__name__.lower()} has no name; run Canonicalize first")
    return found.name


def node_titles(graph: ir.Graph) -> dict[ir.Node, str]:
    """What people call each node of `graph`: its name, else its operator and place: "Conv #3" is the third Conv."""
    counts: Counter[str] = Counter()
    titles = {}
    for node in graph:
        counts[node.op_type] += 1
        titles[node] = node.name or f"{node.op_type} #{counts[node.op_type]}"
    return titles


def constant_value(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer or a Constant node, else None.

    Looks through Identity, a few in a row: torch writes one initializer and Identity nodes where several parameters are
    equal.
    """
    tensor = _constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant_value` gives an array, without reading it: weights may lie on the disk, or wait to be made."""
    return _constant_tensor(value) is not None


def _constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    for _ in range(IDENTITIES):
        producer = None if value is None else value.producer()
        if producer is None or not is_op(producer, "Identity"):
            break
        value = producer.inputs[0]
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and "sparse_value" in producer.attributes:
        return None
    return ir.convenience.get_const_tensor(value)


def initializer_array(graph: ir.Graph, name: str) -> NDArray[np.float32]:
    """The array of the float initializer of this name. Raises ValueError where it was loaded without its data."""
    tensor = graph.initializers[name].const_value
    if tensor is None:
        raise ValueError(f"the initializer {name} has no data")
    return tensor.numpy()


def scalar_value(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element, else None."""
    array = constant_value(value)
    return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind != "S" else None


def rank(value: ir.Value | None) -> int | None:
    """Number of axes, None where unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def static_dims(value: ir.Value | None, start: int = 0) -> tuple[int, ...] | None:
    """Sizes of the axes from `start` on, None where one of them is unknown."""
    if value is None or value.shape is None:
        return None
    dims = tuple(value.shape)[start:]
    return tuple(int(d) for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`, None when it is read twice, read in a subgraph, or leaves the graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not value.graph:
        return None
    return uses[0].node


def producer_within(graph: ir.Graph | ir.Function | None, value: ir.Value | None) -> ir.Node | None:
    """The node of `graph` that computes `value`; None where it comes from elsewhere, as what a body captures does."""
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.graph is graph else None


class FreshNames:
    """Names that no value and no node of `graph` has yet."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        for node in graph.all_nodes():
            self._taken.add(node.name)
            self._taken.update(value.name for value in node.outputs)
        for subgraph in graph.subgraphs():
            self._taken.update(value.name for value in (*subgraph.inputs, *subgraph.initializers.values()))

    def __call__(self, base: str) -> str:
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any] | ir.TensorProtocol) -> ir.Value:
    """A new initializer; `name` must be fresh."""
    tensor = _named(array, name)
    value = ir.val(name, tensor.dtype, tensor.shape.numpy(), const_value=tensor)
    graph.register_initializer(value)
    return value


def changed(value: ir.Value | None, change: Callable[[NDArray[Any]], NDArray[Any]]) -> ir.TensorProtocol:
    """What `change` makes of the array behind a constant, in the type and shape of that.

    Of a weight that lies on the disk nothing is computed until somebody asks, and then each time anew: networks that
    do not fit into memory twice are edited all the same.

    Raises:
        ValueError: It is no constant.
    """
    tensor = _constant_tensor(value)
    if tensor is None:
        raise ValueError(f"{name_of(value)} is no constant")

    def made() -> ir.TensorProtocol:
        array = tensor.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            return ir.tensor(np.ascontiguousarray(change(array).astype(array.dtype, copy=False)))

    if not isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):
        return made()
    return ir.LazyTensor(made, tensor.dtype, ir.Shape(tensor.shape.numpy()))


def set_initializer(value: ir.Value, array: NDArray[Any] | ir.TensorProtocol) -> None:
    """Gives an initializer a new array; it keeps its name."""
    tensor = _named(array, value.name)
    value.const_value = tensor
    value.dtype = tensor.dtype
    value.shape = ir.Shape(tensor.shape.numpy())


def _named(array: NDArray[Any] | ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    tensor: ir.TensorProtocol = ir.tensor(array) if isinstance(array, np.ndarray | np.generic) else array
    tensor.name = name
    return tensor


def set_constant_input(
    node: ir.Node, index: int, array: NDArray[Any] | ir.TensorProtocol, names: FreshNames, base: str
) -> None:
    """Makes this array the input `index` of `node`; other readers of the old input keep that.

    An initializer that only this node reads keeps its name; else there is a new one, named after `base`.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(tuple(old.uses())) == 1 and not old.is_graph_output():
        set_initializer(old, array)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    assert node.graph is not None and not isinstance(node.graph, ir.Function)
    node.replace_input_with(index, add_initializer(node.graph, names(base), array))
    if old is not None and (producer := old.producer()) is not None:
        discard(producer)


def substitute(old: ir.Value, new: ir.Value) -> None:
    """`new` takes the place of `old`: its readers, its place among the graph outputs, its name, type and shape."""
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name
    new.type = new.type if old.type is None else old.type
    new.shape = new.shape if old.shape is None else old.shape
    new.metadata_props.update(old.metadata_props)


def replace_with(old: ir.Node, new: ir.Node) -> None:
    """Puts `new` in the place of `old` and of its first output, and removes what only `old` needed."""
    assert old.graph is not None
    old.graph.insert_before(old, new)
    substitute(old.outputs[0], new.outputs[0])
    discard(old)


def discard(node: ir.Node) -> None:
    """Removes a node that nobody reads, and then those before it that only it read."""
    waiting = [node]
    while waiting:
        dead = waiting.pop()
        if dead.graph is None or any(tuple(out.uses()) or out.is_graph_output() for out in dead.outputs):
            continue
        before = [producer for value in dead.inputs if value is not None and (producer := value.producer())]
        dead.graph.remove(dead, safe=True)
        waiting.extend(before)


def drop_unused_initializers(graph: ir.Graph) -> int:
    """Removes initializers that nothing reads; how many."""
    unused = [
        name
        for name, value in graph.initializers.items()
        if not (tuple(value.uses()) or value.is_graph_output() or value.is_graph_input())
    ]
    for name in unused:
        del graph.initializers[name]
    return len(unused)


def as_float64(array: NDArray[Any]) -> NDArray[np.float64]:
    """The array in float64, for arithmetic inside a pass that is rounded once, at its end."""
    return np.asarray(array).astype(np.float64)
