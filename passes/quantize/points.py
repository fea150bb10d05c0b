"""Where a graph needs Quantize/Dequantize: at all weights, and at all activations that hardware materialises."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.graph.bodies import captured_values
from passes.graph.editing import constant_value, is_op, name_of, required_name, sole_consumer
from passes.graph.masks import masked_values
from passes.graph.operators import ELEMENTWISE, POINTWISE, SELECTIONS
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target

# Float operators of this kind, one right behind the other, are one function. Sums and products are not among them:
# they are where the branches of a network meet, and runtimes have integer kernels for them.
FUNCTIONS = POINTWISE | {"BatchNormalization", "Div", "Sub"}
ACTIVATION_DTYPE = ir.DataType.FLOAT


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """An initializer that is the weight of a linear operator.

    axis: of its output channels, None for a vector. scales: whether it is the weight of a depthwise convolution of one
    tap, which only scales channels.
    """

    initializer: str
    node: str
    axis: int | None
    scales: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantPoints:
    """The names of everything in a graph that is to be quantized.

    activations: values with a scale and zero point of their own, in graph order.
    same_as: value → value whose scale and zero point it shares.
    weights: of linear operators, in graph order.
    constants: initializers that are operands of element-wise operators, where the target wants these as integers.
    """

    activations: tuple[str, ...]
    same_as: Mapping[str, str]
    weights: tuple[WeightUse, ...]
    constants: tuple[str, ...] = ()


def find_quant_points(model: ir.Model, target: Target) -> QuantPoints:
    """The points of a float graph. Masks of attention and what they mask are none (`masked_values`).

    Args:
        model: with inferred types. Values that hold no data (shapes, indices) are not quantized.
        target: tells which operators it merges, and so which values it never materialises; and what stays float on
            request.

    Raises:
        ValueError: a value has no name.
    """
    activations: list[str] = []
    same_as: dict[str, str] = {}
    weights: list[WeightUse] = []
    known, places = Fusion(target), {node: place for place, node in enumerate(model.graph)}
    masked = masked_values(model.graph)
    data: set[ir.Value] = {value for value in model.graph.inputs if value.dtype == ACTIVATION_DTYPE}
    # bytes of pixels, or indices into a table; what is made of shapes and sizes is none
    others: set[ir.Value] = {value for value in model.graph.inputs if value.dtype != ACTIVATION_DTYPE}
    activations.extend(
        required_name(value)
        for value in model.graph.inputs
        if value in data and value not in masked and value.uses() and not known.stays_in_float(value)
    )
    quantized = set(activations)
    for node in model.graph:
        weights.extend(weight_uses(node))
        read = (*node.inputs, *captured_values(node))
        from_others = any(value in others for value in read) and node.op_type not in ("Shape", "Size")
        if not (from_others or any(value in data for value in read)):
            continue
        for value in node.outputs:
            if isinstance(value.type, ir.SequenceType | ir.OptionalType):
                continue
            if value.dtype != ACTIVATION_DTYPE or (from_others and value.shape is not None and len(value.shape) < 2):
                if from_others and value.dtype != ACTIVATION_DTYPE:
                    others.add(value)
                continue
            data.add(value)
            source = node.inputs[0]
            if not (value.uses() or value.is_graph_output()) or known.is_fused(value) or _is_only_compared(value):
                continue
            if value in masked or known.stays_in_float(value):
                continue
            if target.fused_sums and _is_summed_in_kernel(value, places):
                continue
            if node.op_type in SELECTIONS and source is not None and source.name in quantized:
                same_as[required_name(value)] = same_as.get(required_name(source), required_name(source))
            else:
                activations.append(required_name(value))
            quantized.add(required_name(value))
    constants = [
        required_name(value)
        for value in model.graph.initializers.values()
        if value not in masked
        and value.uses()
        and all(_is_combined(value, use.node, quantized, target) for use in value.uses())
    ]
    points = QuantPoints(
        activations=tuple(activations), same_as=same_as, weights=tuple(weights), constants=tuple(constants)
    )
    return _without_kept(points, model.graph, target, known) if target.kept_float else points


def _without_kept(points: QuantPoints, graph: ir.Graph, target: Target, fusion: "Fusion") -> QuantPoints:
    """Without what stays float on request. An activation function that is computed along with a node goes with it."""
    nodes, gone = target.kept_float.nodes, set(target.kept_float.values)
    for node in graph:
        if name_of(node) not in nodes:
            continue
        gone.update(
            name_of(value)
            for value in (*node.inputs, *node.outputs)
            if value is not None and (value.is_initializer() or value.producer() is node)
        )
        for value in node.outputs:
            if fusion.is_fused(value):
                gone.update(name_of(behind) for use in value.uses() for behind in use.node.outputs)
    return QuantPoints(
        activations=tuple(name for name in points.activations if name not in gone),
        same_as={name: root for name, root in points.same_as.items() if name not in gone and root not in gone},
        weights=tuple(use for use in points.weights if use.initializer not in gone),
        constants=tuple(name for name in points.constants if name not in gone),
    )


def _is_only_compared(value: ir.Value) -> bool:
    """Whether nothing but comparisons reads a value: rounding it would only change on which side it lies."""
    readers = [use.node for use in value.uses()]
    return not value.is_graph_output() and all(node.outputs[0].dtype == ir.DataType.BOOL for node in readers)


class Fusion:
    """What a target merges, of one graph that stays as it is. Each value is looked at once, however long the chains."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._fused: dict[ir.Value, bool] = {}
        self._made_in_float: dict[ir.Value, bool] = {}
        self._read_in_float: dict[ir.Value, bool] = {}

    def is_fused(self, value: ir.Value) -> bool:
        """Whether the only consumer of `value` is an activation function that the target merges with its producer."""
        chain: list[ir.Value] = []
        while value not in self._fused:
            producer = value.producer()
            if producer is None or not self._before_function(value, producer):
                self._fused[value] = False
            elif producer.op_type not in self._target.fused_activations or producer.inputs[0] is None:
                self._fused[value] = True
            else:
                chain.append(value)
                value = producer.inputs[0]
        found = self._fused[value]
        for value in reversed(chain):
            # one function is computed together with a layer, not two
            self._fused[value] = found = not found
        return found

    def _before_function(self, value: ir.Value, producer: ir.Node) -> bool:
        """Whether an activation function that can be merged alone reads `value`."""
        consumers = [use.node for use in value.uses()]
        if len(consumers) != 1 or value.is_graph_output() or producer.op_type in SELECTIONS:
            return False
        return consumers[0].op_type in self._target.fused_activations and consumers[0].inputs[0] is value

    def stays_in_float(self, value: ir.Value) -> bool:
        """Whether a value goes from an operator without an integer kernel, or an input, to such operators alone.

        What only moves or bounds numbers in between does not matter. To quantize it would cost accuracy and spare
        nothing.
        """
        if not self._target.fused_functions or value.is_graph_output():
            return False
        return self._is_made_in_float(value) and self._is_read_in_float(value)

    def _is_made_in_float(self, value: ir.Value) -> bool:
        chain: list[ir.Value] = []
        while value not in self._made_in_float:
            producer = value.producer()
            if producer is None:
                self._made_in_float[value] = value.is_graph_input()
            elif _only_moves(producer, self._target) and producer.inputs[0] is not None:
                chain.append(value)
                value = producer.inputs[0]
            else:
                self._made_in_float[value] = not _rule(producer, self._target).takes_integers
        found = self._made_in_float[value]
        self._made_in_float.update(dict.fromkeys(chain, found))
        return found

    def _is_read_in_float(self, value: ir.Value) -> bool:
        """Whether nothing that computes on integers reads a value, nor what is only moved from it."""
        known, waiting = self._read_in_float, [value]
        while waiting:
            last = waiting[-1]
            integers = [use for use in last.uses() if _rule(use.node, self._target).takes_integers]
            moved = [out for use in integers for out in use.node.outputs]
            only_moved = all(use.idx == 0 and _only_moves(use.node, self._target) for use in integers)
            if not only_moved or any(out.is_graph_output() for out in moved):
                known[last] = False
            elif ahead := [out for out in moved if out not in known]:
                waiting.extend(ahead)
                continue
            else:
                known[last] = all(known[out] for out in moved)
            waiting.pop()
        return known[value]


def is_within_function(value: ir.Value, target: Target) -> bool:
    """Whether the producer and the only consumer of `value` are float element-wise operators that the target merges."""
    return target.fused_functions and all(
        node is not None
        and node.op_type in FUNCTIONS
        and not target.operators.get(node.op_type, OperatorRule()).takes_integers
        for node in (value.producer(), sole_consumer(value))
    )


def _only_moves(node: ir.Node, target: Target) -> bool:
    """Whether a node moves numbers, or bounds them, without a kernel of its own for integers, as MaxPool has one.

    A Clip bounds what is divided by: the grid behind it would round the least of it to 0.
    """
    rule = _rule(node, target)
    return (node.op_type in SELECTIONS or rule.vanishes) and not rule.containers


def _rule(node: ir.Node, target: Target) -> OperatorRule:
    return target.operators.get(node.op_type, OperatorRule())


def _is_combined(constant: ir.Value, node: ir.Node, quantized: Set[str], target: Target) -> bool:
    """Whether `node` combines `constant` with a quantized value element by element in a kernel that takes no floats."""
    if node.graph is not constant.graph:
        return False
    if not is_op(node, *ELEMENTWISE) or constant.dtype != ACTIVATION_DTYPE or constant.is_graph_output():
        return False
    if target.format == "qoperator":
        wanted = node.op_type in ("Add", "Mul")  # there are QLinearAdd and QLinearMul
    else:
        rule = target.operators.get(node.op_type)
        wanted = rule is not None and bool(rule.containers) and not any("float" in taken for taken in rule.containers)
    if not wanted:
        return False
    array = constant_value(constant)
    if array is None or not array.size or not np.isfinite(array).all():
        return False
    return any(value is not None and value.name in quantized for value in node.inputs)


def _is_summed_in_kernel(value: ir.Value, places: Mapping[ir.Node, int]) -> bool:
    """Whether `value` is the output of a Conv that can add the other operand of the following sum itself.

    The sum has to be its only consumer, of two values of one shape. Of two such convolutions it is the later one, when
    the output of the earlier is there to be added. places: of the nodes in their graph.
    """
    conv, uses = value.producer(), list(value.uses())
    if conv is None or conv.op_type != "Conv" or len(uses) != 1 or value.is_graph_output():
        return False
    add = uses[0].node
    if add not in places:
        return False
    other = add.inputs[1 - uses[0].idx] if add.op_type == "Add" else None
    if other is None or other.is_initializer() or other.shape is None or value.shape is None:
        return False
    if other.shape[1:] != value.shape[1:]:
        return False
    rival = other.producer()
    if rival is None or rival.op_type != "Conv" or len(tuple(other.uses())) != 1 or other.is_graph_output():
        return True
    return places[conv] > places[rival]


def weight_uses(node: ir.Node) -> list[WeightUse]:
    """The weights of `node`, if it is a linear operator: its constant operands."""
    found = []
    for index in (0, 1):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or not value.is_initializer() or value.dtype != ACTIVATION_DTYPE or value.shape is None:
            continue
        rank = len(value.shape)
        match node.op_type, index:
            case "Conv", 1:
                axis = 0
            case "ConvTranspose", 1:
                axis = 1  # (C_in, C_out / group, ...)
            case "Gemm", _:
                transposed = node.attributes.get_int("transA" if index == 0 else "transB", 0)
                axis = index if not transposed else 1 - index
            case "MatMul", _:
                axis = rank - 1 if index == 1 else rank - 2
            case _:
                continue
        channels, *taps = value.shape
        scales = node.op_type == "Conv" and node.attributes.get_int("group", 1) == channels and set(taps) == {1}
        name, channels_axis = required_name(value), axis if rank > 1 else None
        found.append(WeightUse(initializer=name, node=name_of(node), axis=channels_axis, scales=scales))
    return found


def scales_channels(node: ir.Node) -> bool:
    """Whether `node` is a depthwise convolution of one tap, which scales channels as a normalization does."""
    return any(use.scales for use in weight_uses(node))


def data_input(node: ir.Node, use: WeightUse) -> str:
    """The name of the value that `node` multiplies with the weight of `use`."""
    return next(name_of(value) for value in node.inputs[:2] if value is not None and value.name != use.initializer)
