"""Pairs of a low-bit layer and the layers that compensate its error (DF-MPC, arXiv 2307.00498, figure 2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import onnx_ir as ir

from passes.graph.affine import output_channels
from passes.graph.editing import constant_value, is_constant, is_op, name_of, rank, scalar_value
from passes.graph.filters import is_depthwise
from passes.graph.operators import CHANNELWISE, HOMOGENEOUS, LAYERS

Assignment = Literal["first", "last"]
ASSIGNMENTS: tuple[Assignment, ...] = get_args(Assignment)


@dataclass(frozen=True, kw_only=True, eq=False)
class Consumer:
    """A layer that reads another layer's channels, from its input channel `start` on.

    run: the number of inputs that belong to each channel: 1, or more behind Flatten; `start` counts inputs.
    """

    node: ir.Node
    start: int
    run: int = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class NormSlice:
    """The channels of a BatchNormalization that come from one layer, from `start` on, and the layers that read them."""

    node: ir.Node
    start: int
    consumers: tuple[Consumer, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A layer with a constant weight, and the readers of its output. Texts are half sentences for the user.

    norms: the BatchNormalizations that read its output, directly or through Concat; empty where another operator reads
        it as well.
    consumers: the layers that read its channels, behind norms and activation functions.
    end: where the channels go besides `consumers`; None where they go nowhere else.
    other_reader: the operator other than BatchNormalization that reads its output, or None.
    obstacle: why its channels can have no coefficient; None where they can, because all their readers can undo it.
    joins_sum: whether its channels go into a sum.
    """

    node: ir.Node
    norms: tuple[NormSlice, ...]
    consumers: tuple[Consumer, ...]
    end: str | None
    other_reader: str | None
    obstacle: str | None
    joins_sum: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerPairs:
    """The layers with weights, in graph order: `low` ones get few bits, `high` ones more.

    refused: by node name, why a low layer can have no coefficient, or a high one cannot be low; sentences.
    """

    low: tuple[Layer, ...]
    high: tuple[Layer, ...]
    refused: dict[str, str]

    @property
    def legal(self) -> tuple[Layer, ...]:
        """The low layers all of whose consumers can be compensated, and are high."""
        return tuple(layer for layer in self.low if layer.node.name not in self.refused)


def find_layer_pairs(model: ir.Model, assignment: Assignment) -> LayerPairs:
    """The low and the high layers of a model in canonical form, with its BatchNormalizations or with none left.

    first (figure 2): going backwards from the outputs, a layer is low when none of its consumers is. So it is the first
    convolution of a basic block, the 3x3 of a bottleneck and of a dense layer (its consumers are all the layers behind
    the Concat), every other layer of a plain net.
    last (what the sizes in the paper's tables 3 and 4 imply): of a residual branch all layers but the first; the second
    convolution of a basic block. Elsewhere as `first`.

    Always high: layers that read a graph input, those without BatchNormalization behind them (nothing there could be
    recalibrated; in a model without any this does not count), and depthwise ones, which hold few weights and average
    over few. Raises ValueError for another assignment.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment is {assignment!r}; it must be one of {', '.join(ASSIGNMENTS)}.")
    layers = [_layer(node) for node in model.graph if has_weight(node)]
    folded = not any(is_op(node, "BatchNormalization") for node in model.graph)
    obstacles = {layer.node: reason for layer in layers if (reason := _stays_high(layer, folded)) is not None}
    branches = _residual_branches(layers, obstacles) if assignment == "last" else {}
    low: set[ir.Node] = set()
    for layer in reversed(layers):
        if layer.node in obstacles:
            continue
        if layer.node in branches:
            obstacle = "it is the first layer of a residual branch" if branches[layer.node] else None
        else:
            obstacle = layer.end or _one_of(layer, low)
        if obstacle is None:
            low.add(layer.node)
        else:
            obstacles[layer.node] = obstacle
    refused = {}
    for layer in layers:
        name = name_of(layer.node)
        if layer.node not in low:
            refused[name] = f"{_title(layer.node)} stays high: {obstacles[layer.node]}."
        elif (obstacle := layer.obstacle or _one_of(layer, low)) is not None:
            refused[name] = f"{_title(layer.node)} gets no coefficient: {obstacle}."
    return LayerPairs(
        low=tuple(layer for layer in layers if layer.node in low),
        high=tuple(layer for layer in layers if layer.node not in low),
        refused=refused,
    )


def has_weight(node: ir.Node) -> bool:
    """Whether `node` is a layer with a constant weight of floats: Conv, ConvTranspose, or Gemm (see `Canonicalize`)."""
    if not is_op(node, *LAYERS) or node.attributes.get_int("transA", 0) != 0:
        return False
    if is_op(node, "ConvTranspose") and node.attributes.get_int("group", 1) > 1:
        return False  # its output channels lie on two axes: no scale of one axis belongs to each
    weight = constant_value(node.inputs[1])
    return weight is not None and weight.dtype.kind == "f" and weight.size > 0


def _one_of(layer: Layer, low: set[ir.Node]) -> str | None:
    taken = next((reader.node for reader in layer.consumers if reader.node in low), None)
    return None if taken is None else f"{_title(taken)}, which reads it, is low itself"


def input_count(node: ir.Node) -> int:
    """How many channels, or features, a layer for which `has_weight` reads."""
    weight = constant_value(node.inputs[1])
    assert weight is not None
    if is_op(node, "Conv"):
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    return int(weight.shape[is_op(node, "Gemm") and node.attributes.get_int("transB", 0) != 0])


def _stays_high(layer: Layer, folded: bool) -> str | None:
    data = layer.node.inputs[0]
    if data is None or data.is_graph_input():
        return "it reads the graph input"
    if not (layer.norms or folded):
        return layer.end or layer.other_reader
    return "it is depthwise" if is_depthwise(layer.node) else None


def _residual_branches(layers: Sequence[Layer], obstacles: dict[ir.Node, str]) -> dict[ir.Node, bool]:
    """The layers of branches that end in a sum: whether each is the first of its branch."""
    before = {layer.consumers[0].node: layer for layer in layers if layer.end is None and len(layer.consumers) == 1}
    found: dict[ir.Node, bool] = {}
    for layer in layers:
        member: Layer | None = layer
        if layer.consumers or not layer.joins_sum or layer.node in obstacles:
            continue
        while member is not None:
            previous = before.get(member.node)
            found[member.node] = previous is None
            member = previous
    return found


def _layer(node: ir.Node) -> Layer:
    norms: list[NormSlice] = []
    weight = constant_value(node.inputs[1])
    assert weight is not None
    other_reader = next(_other_readers(node.outputs[0], 0, norms), None)
    if other_reader is not None:
        norms = []
    walk = _Walk()
    behind = []
    for norm in norms:
        before = len(walk.consumers)
        walk.follow(norm.node.outputs[0], norm.start)
        behind.append(replace(norm, consumers=tuple(walk.consumers[before:])))
    if not norms:
        walk.follow(node.outputs[0], 0)
    end = walk.ends[0] if walk.ends else None if walk.consumers else "no layer reads it"
    return Layer(
        node=node,
        norms=tuple(behind),
        consumers=tuple(walk.consumers),
        end=end,
        other_reader=other_reader,
        obstacle=end or other_reader or (walk.nonlinear[0] if walk.nonlinear else None),
        joins_sum=walk.joins_sum,
    )


def _other_readers(value: ir.Value, start: int, norms: list[NormSlice]) -> Iterator[str]:
    """The readers of `value` other than BatchNormalization, in words; the others are appended to `norms`."""
    waiting = [_readers(value, start, norms)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
        elif isinstance(found, str):
            yield found
        else:
            waiting.append(_readers(*found, norms))


def _readers(value: ir.Value, start: int, norms: list[NormSlice]) -> Iterator[str | tuple[ir.Value, int]]:
    """The same of one value; a value with its `start` in the place of readers that hand the channels on."""
    if value.is_graph_output():
        yield f"its output '{value.name}' leaves the graph before a BatchNormalization"
    for use in value.uses():
        reader = use.node
        if is_op(reader, "BatchNormalization") and use.idx == 0:
            if any(not is_constant(parameter) for parameter in reader.inputs[1:5]):
                yield f"the parameters of {_title(reader)} are computed by the graph"
            norms.append(NormSlice(node=reader, start=start))
        elif is_op(reader, "Concat") and _joins_channels(reader) and (offset := _offset(reader, use.idx)) is not None:
            yield reader.outputs[0], start + offset
        elif is_op(reader, "AveragePool"):  # a shift of the mean passes it as it is
            yield reader.outputs[0], start
        else:
            yield f"{_title(reader)} reads it before a BatchNormalization does"


class _Walk:
    """Follows channels from a value to the layers that read them."""

    def __init__(self) -> None:
        self.consumers: list[Consumer] = []
        self.ends: list[str] = []  # readers that are no layers, in words
        self.nonlinear: list[str] = []  # operators that a positive factor cannot pass, in words
        self.joins_sum = False
        self._visited: set[ir.Value] = set()

    def follow(self, value: ir.Value, start: int, flat: int | None = None) -> None:
        """Follow the channels of `value` from `start` on. flat: behind Flatten the number of channels before it."""
        waiting = [self._steps(value, start, flat)]
        while waiting:
            if (ahead := next(waiting[-1], None)) is None:
                waiting.pop()
            else:
                waiting.append(self._steps(*ahead))

    def _steps(self, value: ir.Value, start: int, flat: int | None) -> Iterator[tuple[ir.Value, int, int | None]]:
        """Takes down the readers of `value`; what is to be followed next."""
        if value in self._visited:
            return
        self._visited.add(value)
        if value.is_graph_output():
            self.ends.append(f"its output '{value.name}' leaves the graph")
        for use in value.uses():
            node = use.node
            offset = _offset(node, use.idx) if is_op(node, "Concat") and _joins_channels(node) else None
            if has_weight(node) and use.idx == 0:
                run = 1 if flat is None else input_count(node) // flat
                self.consumers.append(Consumer(node=node, start=start * run, run=run))
            elif offset is not None and flat is None:
                yield node.outputs[0], start + offset, None
            elif is_op(node, "Flatten") and flat is None and (channels := _flattened(node)) is not None:
                yield node.outputs[0], start, channels
            elif is_op(node, *CHANNELWISE) and use.idx == 0:
                # the chain of layers goes on behind it, a coefficient only if it is homogeneous
                if not _is_homogeneous(node):
                    self.nonlinear.append(f"{_title(node)} is not linear for positive numbers, so no factor passes it")
                yield node.outputs[0], start, flat
            elif is_op(node, "BatchNormalization") and use.idx == 0:
                self.nonlinear.append(f"{_title(node)} normalizes it a second time")
                yield node.outputs[0], start, flat
            elif not is_op(node, "Shape"):
                self.joins_sum |= is_op(node, "Add", "Sum")
                self.ends.append(f"{_title(node)} reads it, which is no layer that can pay for it")


def _flattened(node: ir.Node) -> int | None:
    """The number of channels of the input of a Flatten; None where the graph does not say, or axis is not 1."""
    return _channels(node.inputs[0]) if node.attributes.get_int("axis", 1) == 1 else None


def _is_homogeneous(node: ir.Node) -> bool:
    if is_op(node, "Clip"):
        low, high = (node.inputs[index] if index < len(node.inputs) else None for index in (1, 2))
        return high is None and scalar_value(low) == 0
    return is_op(node, *HOMOGENEOUS)


def _joins_channels(node: ir.Node) -> bool:
    axis, axes = node.attributes.get_int("axis", 1), rank(node.inputs[0])
    return axis == 1 or (axes is not None and axis + axes == 1)


def _offset(node: ir.Node, index: int) -> int | None:
    """The channel of a Concat's output at which its input `index` begins; None where the graph does not say."""
    sizes = [_channels(value) for value in node.inputs[:index]]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _channels(value: ir.Value | None) -> int | None:
    producer = None if value is None else value.producer()
    if producer is not None and has_weight(producer):
        weight = constant_value(producer.inputs[1])
        assert weight is not None
        return output_channels(producer, weight)
    size = None if value is None or value.shape is None or len(value.shape) < 2 else value.shape[1]
    return size if isinstance(size, int) else None


def _title(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name}'"
