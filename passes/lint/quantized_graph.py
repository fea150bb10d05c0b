"""`QuantizedGraph`: the quantization around the nodes of a QDQ file of any origin, as a runtime reads it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.bodies import captured_values, subgraphs
from passes.graph.editing import constant_value, is_constant, is_op, producer_within, sole_consumer, static_dims
from passes.graph.operators import RANDOM
from passes.lint.unjudged import add_values_of_shapes
from passes.target.operator_rule import OperatorRule

WHOLE_FILE = "*"  # the rule for what concerns no single operator


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """How a value is quantized.

    container: element type of the integers; "float" for a constant that is not quantized.
    scale, zero_point: () or (C,) along `axis`; None where the file computes them.
    constant: the integers stand in the file. node: the DequantizeLinear or QuantizeLinear, None for a float constant.
    """

    container: str
    scale: NDArray[np.float32] | None
    zero_point: NDArray[np.int64] | None
    axis: int | None
    constant: bool
    node: ir.Node | None


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputQuantization:
    """The quantization of an output. grid: that of the QuantizeLinear behind it, None where none follows alone.

    activation: the activation function between, if there is one. obstacle: why no QuantizeLinear follows alone.
    """

    grid: Grid | None
    activation: ir.Node | None = None
    obstacle: str = ""


class QuantizedGraph:
    """A graph and the rules of the runtime that reads it.

    around: the graph in which a body stands. A body knows its constants, and what follows from sizes; but no runtime
    sees the nodes there that compute what the body captures: a DequantizeLinear counts in its own graph only.
    """

    def __init__(
        self, graph: ir.Graph, rules: Mapping[str, OperatorRule], *, around: "QuantizedGraph | None" = None
    ) -> None:
        self.rules = rules
        self.opset: int = graph.opset_imports.get("", 0) if around is None else around.opset
        self._graph = graph
        self._whole = rules.get(WHOLE_FILE, OperatorRule())
        # one set for a graph and its bodies, for no value is in two of them
        self._computed_on_loading: set[ir.Value] = set() if around is None else around._computed_on_loading
        self._of_shapes: set[ir.Value] = set() if around is None else around._of_shapes
        _add_constants(graph, self._computed_on_loading)
        add_values_of_shapes(graph, self._computed_on_loading, self._of_shapes)
        self._captures = Counter(value for node in graph for value in captured_values(node))
        # looked for once at each value, so that a chain costs no more than its length
        self._written: dict[ir.Value, Grid | None] = {}
        self._pulled: dict[ir.Value, ir.Value] = {}
        self.written_as_integers: dict[ir.Value, bool | None] = {}  # what checks have found of it

    def _readers(self, value: ir.Value) -> int:
        """How often a value is read; a node whose bodies capture it reads it once."""
        around = sum(use.node.graph is value.graph for use in value.uses())
        return around + self._captures[value] + value.is_graph_output()

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether the value stands in the file, or follows from such values alone."""
        return value is not None and (value in self._computed_on_loading or is_constant(value))

    def is_captured(self, value: ir.Value | None) -> bool:
        """Whether the value is one of the graph around."""
        return value is not None and value.graph is not self._graph

    def is_out_of_reach(self, value: ir.Value | None) -> bool:
        """Whether it is captured, and the runtime rewrites a body by the body's own constants only."""
        return self._whole.own_constants and self.is_captured(value)

    def is_of_shapes(self, value: ir.Value) -> bool:
        """Whether the value follows from sizes of tensors alone."""
        return value in self._of_shapes

    def tripping_inputs(self, node: ir.Node) -> list[ir.Value]:
        """What is filled to a size that the file leaves open, and joined with data where the runtime trips over it."""
        rule = self.rules.get(node.op_type)
        if rule is None or not rule.trips_over_filled or all(map(self.is_of_shapes, node.outputs)):
            return []
        return [value for value in node.inputs if value and self.is_of_shapes(value) and not self.is_constant(value)]

    def grid_before(self, value: ir.Value | None, *, as_written: bool = False) -> Grid | None:
        """The grid that `value` is read from, None where it holds float data. as_written: as the file has it."""
        grid = self._written_before(value)
        producer = None if value is None else value.producer()
        if as_written or grid is None or value is None or producer is None:
            return grid
        pair = self._readers(producer.outputs[0]) <= 1
        if is_op(producer, "DequantizeLinear"):
            source = producer.inputs[0]
            quantizer = None if source is None else source.producer()
            alone = source is not None and sole_consumer(source) is producer
            pair = pair and alone and is_op(quantizer, "QuantizeLinear")
        return self._changed(grid, pair=pair)

    def _written_before(self, value: ir.Value | None) -> Grid | None:
        """The grid of the DequantizeLinear before `value`, past nodes that the runtime moves it over."""
        passed: list[ir.Value] = []
        found: Grid | None = None
        while value is not None:
            if value in self._written:
                found = self._written[value]
                break
            passed.append(value)
            producer = producer_within(self._graph, value)
            if producer is not None and is_op(producer, "DequantizeLinear"):
                found = _grid(producer, constant=self.is_constant(producer.inputs[0]))
                break
            if self.is_constant(value):
                found = Grid(container="float", scale=None, zero_point=None, axis=None, constant=True, node=None)
                break
            value = producer.inputs[0] if producer is not None and self._carries(producer) else None
        self._written.update(dict.fromkeys(passed, found))
        return found

    def output_quantization(self, value: ir.Value, *, fuses: tuple[str, ...] = ()) -> OutputQuantization:
        """The QuantizeLinear behind `value`, past one function of `fuses` and nodes that the runtime moves it over."""
        activation, consumer = None, sole_consumer(value)
        if consumer is not None and is_op(consumer, *fuses) and consumer.inputs[0] is value:
            activation, value = consumer, consumer.outputs[0]
            consumer = sole_consumer(value)
        start, value = value, self._behind_pulling(value)
        consumer = sole_consumer(value)
        if consumer is None or not is_op(consumer, "QuantizeLinear") or consumer.inputs[0] is not value:
            return OutputQuantization(grid=None, activation=activation, obstacle=_obstacle(value, consumer))
        follower = sole_consumer(consumer.outputs[0])
        pair = follower is not None and is_op(follower, "DequantizeLinear") and self._readers(follower.outputs[0]) <= 1
        # where the Quantize is moved, the runtime puts a pair of its own behind the start
        grid = self._changed(_grid(consumer, constant=False), pair=pair or start is not value)
        return OutputQuantization(grid=grid, activation=activation)

    def _behind_pulling(self, value: ir.Value) -> ir.Value:
        """The last value behind `value`, past nodes that the runtime moves a QuantizeLinear before."""
        passed = []
        while value not in self._pulled:
            passed.append(value)
            consumer = sole_consumer(value)
            if consumer is None or consumer.inputs[0] is not value or not self._pulls(consumer):
                break
            value = consumer.outputs[0]
        last = self._pulled.get(value, value)
        self._pulled.update(dict.fromkeys(passed, last))
        return last

    def _pulls(self, node: ir.Node) -> bool:
        rule = self.rules.get(node.op_type)
        return rule is not None and rule.pulls and is_op(node, node.op_type) and self.opset >= rule.oldest_opset

    def _carries(self, node: ir.Node) -> bool:
        rule = self.rules.get(node.op_type)
        return rule is not None and rule.carries and is_op(node, node.op_type) and self.opset >= rule.oldest_opset

    def grid_moved_on(self, node: ir.Node, *, as_written: bool = False) -> Grid | None:
        """The grid of the pair that the runtime puts behind `node`, when it moves the DequantizeLinear before it on."""
        grid = self.grid_before(node.inputs[0], as_written=True) if self._carries(node) else None
        return grid if grid is None or as_written else self._changed(grid, pair=self._readers(node.outputs[0]) <= 1)

    def trips_over_move(self, node: ir.Node) -> bool:
        """Whether the runtime moves a DequantizeLinear through `node`, changes its type, and then does not load it."""
        moved = self.grid_moved_on(node)
        if moved is None or not self.type_breaks(node) or moved.container == self._whole.becomes.split()[0]:
            return False
        return self.output_quantization(node.outputs[0]).grid is None

    def type_breaks(self, node: ir.Node) -> bool:
        """Whether the first input of `node` has a type that the runtime cannot move on.

        The pair that ONNX Runtime 1.31 writes keeps the attribute output_dtype, which came with opset 21, when
        `qdq_s8_to_u8.cc` changes its zero point.
        """
        grid = self.grid_before(node.inputs[0], as_written=True)
        if grid is None or grid.constant or not 0 < self._whole.becomes_breaks_from <= self.opset:
            return False
        if self.is_out_of_reach(zero_point_of(grid)):
            return False
        return grid.container == self._whole.becomes.split()[0]

    def _changed(self, grid: Grid, *, pair: bool) -> Grid:
        """The grid once the runtime has changed the type of a pair of Quantize and Dequantize that stands alone."""
        if not self._whole.becomes or not pair or grid.constant or grid.zero_point is None:
            return grid
        if self.is_out_of_reach(zero_point_of(grid)):
            return grid
        old, new = self._whole.becomes.split()
        if grid.container != old:
            return grid
        return replace(grid, container=new, zero_point=grid.zero_point + (np.iinfo(new).min - np.iinfo(old).min))


def zero_point_of(grid: Grid) -> ir.Value | None:
    """The value that holds the zero point of a grid, None where there is none."""
    return grid.node.inputs[2] if grid.node is not None and len(grid.node.inputs) > 2 else None


def _add_constants(graph: ir.Graph, found: set[ir.Value]) -> None:
    """Adds values that runtimes compute when they load the file. Dequantized constants stay quantized, and are none."""
    for node in graph:
        if node.op_type == "DequantizeLinear" or node.op_type in RANDOM or not node.inputs or subgraphs(node):
            continue
        data = node.inputs[:1] if is_op(node, "CastLike") else node.inputs  # of the other input only the type counts
        constant = all(value is None or value in found or is_constant(value) for value in data)
        if constant or (is_op(node, "Shape", "Size") and static_dims(node.inputs[0]) is not None):
            found.update(node.outputs)


def _obstacle(value: ir.Value, consumer: ir.Node | None) -> str:
    if consumer is not None:
        return f"the {consumer.op_type} behind it reads it in float"
    if value.is_graph_output():
        return f"its output {value.name} leaves the graph in float"
    readers = [use.node for use in value.uses()]
    if any(node.graph is not value.graph for node in readers):
        return f"a body reads its output {value.name}"
    if any(is_op(node, "QuantizeLinear") for node in readers):
        return f"besides one QuantizeLinear there are other readers of its output {value.name}"
    return f"its output {value.name} is read {len(readers)} times in float"


def _grid(node: ir.Node, *, constant: bool) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear."""
    scale = constant_value(node.inputs[1])
    zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    per_channel = scale is not None and scale.size > 1
    return Grid(
        container=_container(node),
        scale=None if scale is None else np.asarray(scale, np.float32),
        zero_point=np.zeros((), np.int64) if zero is None else np.asarray(zero).astype(np.int64),
        axis=node.attributes.get_int("axis", 1) if per_channel else None,
        constant=constant,
        node=node,
    )


def _container(node: ir.Node) -> str:
    integers = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    for value in (zero, integers):
        if value is not None and value.dtype is not None:
            return value.dtype.name.lower()
    given = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(given).name.lower() if given else "uint8"
