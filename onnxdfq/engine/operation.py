"""Operations: the nodes of an ONNX graph, each checked and bound to the function that computes it."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import onnx_ir as ir
from torch import Tensor

from onnxdfq.engine.dtypes import to_torch, torch_dtype
from onnxdfq.engine.fallback import OWN_DOMAINS, InRuntime, carried
from onnxdfq.engine.host import Host, host_inputs
from onnxdfq.engine.ops import OPERATORS
from onnxdfq.engine.quant import float_carriers
from onnxdfq.engine.runtime import LAST_BITS, AsRuntime
from onnxdfq.errors import InputError, UnsupportedOperator
from passes.graph.bodies import captured_values
from passes.graph.editing import name_of

TYPE_ATTRIBUTES = frozenset({"dtype", "output_dtype", "precision", "softmax_precision", "to"})
"""Attributes that hold an ONNX element type."""


DATA_DEPENDENT: frozenset[str] = frozenset({"Compress", "NonMaxSuppression", "NonZero", "RoiAlign", "Unique"})
"""Operators whose output shape depends on data, so that the meta device cannot run them."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One node: its function with its attributes bound, and the names of what it reads and computes."""

    label: str  # "Conv node 'conv1'", for error messages
    op_type: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]  # value names, "" where an optional input is left out
    outputs: tuple[str, ...]
    host: Mapping[int, Host]  # the inputs, by position, that are read as Python numbers
    foreseeable: bool = True  # whether shapes of its results can be told without computing them

    def must_read(self, position: int) -> bool:
        """Whether this input has to be a Python number when the function is called."""
        return position in self.host and self.host[position].required


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Computes a value as `function` of another value, `source`, instead of by its node."""

    source: str
    function: Callable[[Tensor], Tensor]


def read_operations(
    graph: ir.Graph,
    outputs: Iterable[str],
    inputs: Collection[str] = (),
    replacements: Mapping[str, Replacement] = {},
) -> tuple[Operation, ...]:
    """The operations on which values depend, in topological order.

    Args:
        graph: In topological order.
        outputs: Names of the values to compute.
        inputs: Names of the values that the caller passes; what computes these is left out.
        replacements: Value name → what computes it instead of its node.

    """
    given = frozenset(inputs)
    wanted = set(outputs) - given
    nodes: list[ir.Node] = []
    found: list[Operation | None] = []  # None stands for a node: which carry floats is decided once all are collected
    for node in reversed(graph):
        if not wanted:
            break
        names = set(map(name_of, node.outputs))
        for name in sorted(wanted & names & replacements.keys()):
            found.append(_replacement(name, replacements[name]))
            wanted |= {replacements[name].source} - given
        if wanted & names - replacements.keys():
            nodes.append(node)
            found.append(None)
            read = (value for value in (*node.inputs, *captured_values(node)) if value and value.producer())
            wanted.update(name for value in read if (name := name_of(value)) and name not in given)
        wanted -= names
    nodes.reverse()
    carriers = float_carriers(nodes, {value_name(value) for value in graph.outputs})
    quantized = any(node.op_type == "QuantizeLinear" for node in nodes)
    made = (_operation(node, given, carries_float=node in carriers, as_runtime=quantized) for node in nodes)
    return tuple(next(made) if operation is None else operation for operation in reversed(found))


def _replacement(name: str, replacement: Replacement) -> Operation:
    return Operation(
        label=f"the replacement of {name!r}",
        op_type="",
        function=replacement.function,
        inputs=(replacement.source,),
        outputs=(name,),
        host={},
    )


def value_name(value: ir.Value) -> str:
    """The name of a value.

    Raises:
        InputError: It has none.
    """
    if not value.name:
        raise InputError("a value of the graph has no name; give every value one")
    return value.name


def _operation(node: ir.Node, given: frozenset[str], *, carries_float: bool, as_runtime: bool) -> Operation:
    if is_native(node):
        try:
            return _native(node, carries_float=carries_float, as_runtime=as_runtime)
        except UnsupportedOperator:  # an attribute or an element type
            pass
    function = InRuntime(node, given)
    return Operation(
        label=_label(node),
        op_type=node.op_type,
        function=function,
        inputs=function.inputs,
        outputs=tuple(map(name_of, node.outputs)),
        host={},
        foreseeable=False,
    )


def is_native(node: ir.Node) -> bool:
    """Whether the engine has a function for a node, which gradients pass; ONNX Runtime computes all others."""
    return node.domain in OWN_DOMAINS and node.op_type in OPERATORS and carried(node)


def _label(node: ir.Node) -> str:
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type} node {name!r}"


def _native(node: ir.Node, *, carries_float: bool, as_runtime: bool) -> Operation:
    label = _label(node)
    function = OPERATORS[node.op_type]
    outputs = tuple(map(name_of, node.outputs))
    known_keywords = _parameters(function)
    # Facts about the node that are not attributes; a function receives those that it has a keyword for.
    facts: dict[str, Any] = {
        "output_count": len(outputs),
        "carries_float": carries_float,
        "input_types": tuple(_element_type(value) for value in node.inputs),
    }
    keywords = {name: fact for name, fact in facts.items() if name in known_keywords}
    for attribute in node.attributes.values():
        if attribute.name not in known_keywords:
            raise UnsupportedOperator(f"{label}: attribute {attribute.name!r} is not supported.")
        try:
            keywords[attribute.name] = _attribute_value(attribute)
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"{label}: {error}") from None
    bound: Callable[..., Any] = partial(function, **keywords) if keywords else function
    if as_runtime and node.op_type in LAST_BITS and node.graph is not None:
        bound = AsRuntime(node, bound, opset=node.graph.opset_imports[""])
    return Operation(
        label=label,
        op_type=node.op_type,
        function=bound,
        inputs=tuple(map(name_of, node.inputs)),
        outputs=outputs,
        host=host_inputs(function),
        foreseeable=node.op_type not in DATA_DEPENDENT,
    )


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _element_type(value: ir.Value | None) -> int:
    """The ONNX element type of a value, 0 where the model does not say."""
    if value is None:
        return 0
    if value.dtype is not None:
        return int(value.dtype)
    producer = value.producer()  # a Constant tells its type even where shapes were not inferred
    tensor = producer.attributes.get("value") if producer is not None and producer.op_type == "Constant" else None
    return 0 if tensor is None else int(tensor.as_tensor().dtype)


def _attribute_value(attribute: ir.Attr) -> Any:
    match attribute.type:
        case ir.AttributeType.INT if attribute.name in TYPE_ATTRIBUTES and attribute.value:
            torch_dtype(attribute.value)  # raises now, not at the first run
            return attribute.value
        case ir.AttributeType.INT | ir.AttributeType.FLOAT | ir.AttributeType.STRING:
            return attribute.value
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS:
            return tuple(attribute.value)
        case ir.AttributeType.TENSOR:
            return to_torch(attribute.as_tensor())
    raise UnsupportedOperator(f"attribute {attribute.name!r} of type {attribute.type.name} is not supported")
