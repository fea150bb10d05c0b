"""Bodies of If and Loop as models of their own, and back: what is quantized in one is quantized as any graph is."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_constant, is_op, name_of, node_titles
from passes.graph.operators import LINEAR

ENTERED = ("If", "Loop")
BODIES = ("then_branch", "else_branch", "body")
DEPTH = 4  # of comparisons that make a condition
COMPARISONS: Mapping[str, Callable[..., NDArray[np.bool_]]] = {
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """One body.

    Attributes:
        node: Name of the If or Loop.
        attribute: "then_branch", "else_branch" or "body".
        model: The body alone; what it reads of the graph around it are inputs behind its own, constants its own.
        captured: Names of these inputs, in order.
    """

    node: str
    attribute: str
    model: ir.Model
    captured: tuple[str, ...]


def bodies_with_layers(model: ir.Model) -> list[Body]:
    """Those of the nodes of the graph itself that hold layers with constant weights, in graph order."""
    return [
        _body(model, node, name)
        for node in model.graph
        if is_op(node, *ENTERED)
        for name in BODIES
        if name in node.attributes and _has_layers(node.attributes[name].as_graph())
    ]


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of the graph around that the subgraphs of a node read, each once."""
    found: dict[ir.Value, None] = {}
    for graph in subgraphs(node):
        _capture(graph, found)
    return list(found)


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that an If, Loop or Scan runs; they read values of the graph around them besides the node's inputs."""
    return [graph for _, graph in named_subgraphs(node)]


def named_subgraphs(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The same, each with the name of its attribute."""
    found: list[tuple[str, ir.Graph]] = []
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append((name, attribute.as_graph()))
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend((name, graph) for graph in attribute.as_graphs())
    return found


def taken_branch(node: ir.Node) -> str | None:
    """Which attribute holds the branch of an If that is taken; None where that depends on what the network reads."""
    condition = _folded(node.inputs[0], DEPTH) if is_op(node, "If") else None
    return None if condition is None else "then_branch" if condition.any() else "else_branch"


def _folded(value: ir.Value | None, depth: int) -> NDArray[Any] | None:
    """The array of one element that a value is, or that comparisons of such make it; None where it is no other.

    depth: how many of them are looked through. Whatever else makes a constant of a condition has been folded before,
    or is left to the runtime: a stranger's file may hold arithmetic without end.
    """
    if is_constant(value):
        array = constant_value(value)
        return array if array is not None and array.size == 1 else None
    node = None if value is None else value.producer()
    if node is None or not is_op(node, *COMPARISONS) or not depth:
        return None
    parts = [_folded(part, depth - 1) for part in node.inputs]
    return None if any(part is None for part in parts) else np.asarray(COMPARISONS[node.op_type](*parts))


def titled_nodes(graph: ir.Graph, prefix: str = "") -> Iterator[tuple[str, str, ir.Node]]:
    """All nodes of a graph and, behind each, of its bodies: what names there begin with, and what people call it."""
    for node, title in node_titles(graph).items():
        title = title if title.startswith(prefix) else prefix + title  # as names are that onnxdfq wrote
        yield prefix, title, node
        for attribute, body in named_subgraphs(node):
            yield from titled_nodes(body, prefix_of(title, attribute))


def nodes_within(node: ir.Node) -> Iterator[ir.Node]:
    """The node, and those in its bodies, at any depth."""
    yield node
    for graph in subgraphs(node):
        yield from graph.all_nodes()


def prefix_of(node: str, attribute: str) -> str:
    """What names of a body begin with, where they could be mistaken for those of the graph around it."""
    return f"{node}.{attribute}."


def with_body(model: ir.Model, body: Body, written: ir.Model) -> ir.Model:
    """The model with another body in the place of one; what the new one reads of the graph around are the same values.

    Args:
        model: In which the node of `body` stands; it is used up.
        body: As `bodies_with_layers` gave it of this model or of the one that this was made from.
        written: The new body, with the inputs of `body.model`.
    """
    proto = ir.to_proto(model)
    node = next(node for node in proto.graph.node if node.name == body.node)
    attribute = next(attribute for attribute in node.attribute if attribute.name == body.attribute)
    own = len(attribute.g.input)
    here = next(one for one in model.graph if one.name == body.node)
    around = _captured_by(here.attributes[body.attribute].as_graph())
    renamed = dict(zip(body.captured, (name_of(value) for value in around if not _is_constant(value)), strict=True))
    kept = {value.name for value in attribute.g.output} | {value.name for value in attribute.g.input} | renamed.keys()
    new = ir.serde.serialize_graph(written.graph)
    del new.input[own:]
    _rename(new, kept, renamed, prefix_of(body.node, body.attribute))
    attribute.g.CopyFrom(new)
    return ir.from_proto(proto)


def _rename(graph: onnx.GraphProto, kept: set[str], renamed: dict[str, str], prefix: str) -> None:
    """Names that must not hide those of the graph around get the prefix; what is captured its name there."""
    own = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    names = {name: prefix + name for name in own - kept if name} | renamed
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for info in graph.value_info:
        info.name = names.get(info.name, info.name)


def _has_layers(graph: ir.Graph) -> bool:
    return any(node.op_type in LINEAR and any(is_constant(value) for value in node.inputs[:2]) for node in graph)


def _body(model: ir.Model, node: ir.Node, attribute: str) -> Body:
    graph = node.attributes[attribute].as_graph()
    around = _captured_by(graph)
    proto = ir.serde.serialize_graph(graph)
    captured = [value for value in around if not _is_constant(value)]
    for value in around:
        if _is_constant(value):
            assert value.const_value is not None
            tensor = ir.serde.serialize_tensor(value.const_value)
            tensor.name = name_of(value)
            proto.initializer.append(tensor)
        else:
            proto.input.append(ir.serde.serialize_value(value))
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    alone = onnx.helper.make_model(proto, opset_imports=opsets, ir_version=model.ir_version)
    return Body(
        node=name_of(node),
        attribute=attribute,
        model=ir.from_proto(alone),
        captured=tuple(name_of(value) for value in captured),
    )


def _captured_by(graph: ir.Graph) -> list[ir.Value]:
    found: dict[ir.Value, None] = {}
    _capture(graph, found)
    return list(found)


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None


def _capture(graph: ir.Graph, found: dict[ir.Value, None]) -> None:
    own: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    waiting = [graph]
    while waiting:
        inner = waiting.pop()
        own.update(inner.inputs, inner.initializers.values(), *(node.outputs for node in inner))
        for node in inner:
            read.update(dict.fromkeys(value for value in node.inputs if value is not None))
            waiting.extend(subgraphs(node))
        read.update(dict.fromkeys(inner.outputs))
    found.update(dict.fromkeys(value for value in read if value not in own))
