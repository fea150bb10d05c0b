"""`FoldBatchNorm`: batch normalizations into the weights of neighbouring layers."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.affine import (
    ChannelAffine,
    absorb_inputs,
    batch_norm_affine,
    constant_bias,
    elementwise_affine,
    output_channels,
    scale_outputs,
    write_layer,
)
from passes.graph.editing import (
    FreshNames,
    as_float64,
    changed,
    constant_value,
    discard,
    drop_unused_initializers,
    is_constant,
    is_op,
    name_of,
    rank,
    replace_with,
    sole_consumer,
    substitute,
)
from passes.graph.operators import ELEMENTWISE, LAYERS, LINEAR

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UnfoldedBatchNorm:
    """A BatchNormalization that no neighbouring layer can absorb."""

    node: str
    reason: str  # one sentence


class FoldBatchNorm(ir.passes.InPlacePass):
    """Folds per-channel affine nodes into the constant weights of a neighbour. In float64, rounded once.

    1. Backward: BatchNormalization after Conv, ConvTranspose, Gemm, or a MatMul of two axes (which becomes Gemm), when
       nothing else reads the layer's output. The layer's output takes the name of the BatchNormalization's.
    2. Backward: Mul, Div, Add, Sub by a constant per channel after Conv, ConvTranspose or Gemm, likewise.
    3. Forward: BatchNormalization that only a Conv without padding reads (with padding only if it shifts nothing: the
       padded zeros lie behind the normalization), or a Gemm, or a MatMul of two axes; GlobalAveragePool, AveragePool
       and Flatten may stand between.
    4. Forward: Mul, Div, Add, Sub by a constant per channel, likewise: what scales pixels goes into the first layer.

    A new bias is named `<layer>.bias`. What cannot fold stays: `unfolded_batch_norms` says why.

    Args:
        keep: names of BatchNormalization nodes that are to stay.
    """

    def __init__(self, keep: Collection[str] = ()) -> None:
        self.keep = frozenset(keep)

    def requires(self, model: ir.Model) -> None:
        if any(not node.name for node in model.graph):
            raise ir.passes.PreconditionError("Nodes without a name: run Canonicalize before FoldBatchNorm.")
        if model.graph.opset_imports.get("", 0) < 14:
            raise ir.passes.PreconditionError("FoldBatchNorm reads opset 14 and later: convert the model first.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        names = FreshNames(model.graph)
        count = 0
        for node in model.graph:
            count += node.name not in self.keep and _fold_backward(node, names)
        for node in reversed(list(model.graph)):  # of a chain the last first: the one before it then meets the layer
            count += node.name not in self.keep and _fold_forward(node, names)
        count += drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(count))

    def ensures(self, model: ir.Model) -> None:
        left = {name_of(node) for node in model.graph if is_op(node, "BatchNormalization")} - self.keep
        if foldable := left - {found.node for found in unfolded_batch_norms(model)}:
            raise ir.passes.PostconditionError(f"BatchNormalization could be folded and was not: {sorted(foldable)}")


def unfolded_batch_norms(model: ir.Model) -> tuple[UnfoldedBatchNorm, ...]:
    """The BatchNormalization nodes that FoldBatchNorm leaves in this model, in graph order, each with its reason."""
    return tuple(
        UnfoldedBatchNorm(node=name_of(node), reason=reason)
        for node in model.graph
        if is_op(node, "BatchNormalization") and (reason := _why_not(node)) is not None
    )


def _why_not(node: ir.Node) -> str | None:
    title = f"BatchNormalization '{node.name}' stays"
    if node.attributes.get_int("training_mode", 0):
        return f"{title}: it normalizes by the batch (training_mode=1); export the model in evaluation mode."
    if any(not is_constant(value) for value in node.inputs[1:5]):
        return f"{title}: its parameters are computed by the graph."
    affine = batch_norm_affine(node)
    if affine is None:
        return f"{title}: variance and epsilon give a scale that is not finite."
    before = _backward_obstacle(node)
    after = _forward_obstacle(node, affine)
    return None if before is None or after is None else f"{title}: {before}, and {after}."


# ---- backward: layer, then affine


def _fold_backward(node: ir.Node, names: FreshNames) -> bool:
    layer = _layer_before(node)
    if layer is None or _layer_obstacle(layer, node) is not None:
        return False
    weight = constant_value(layer.inputs[1])
    assert weight is not None
    if is_op(node, "BatchNormalization"):
        affine = batch_norm_affine(node)
    elif is_op(layer, "MatMul"):
        return False
    else:
        affine = elementwise_affine(node, layer.outputs[0], weight.ndim, output_channels(layer, weight))
    if affine is None:
        return False
    bias = constant_bias(layer, affine.scale.size)
    assert bias is not None
    layer = _with_bias_slot(layer, names)
    scale = affine.scale
    scaled = changed(layer.inputs[1], lambda array: scale_outputs(layer, as_float64(array), scale))
    write_layer(layer, names, weight=scaled, bias=bias * scale + affine.shift)
    substitute(node.outputs[0], layer.outputs[0])
    discard(node)
    logger.debug("%s %s folds into %s %s before it", node.op_type, node.name, layer.op_type, layer.name)
    return True


def _layer_before(node: ir.Node) -> ir.Node | None:
    if is_op(node, "BatchNormalization"):
        value = node.inputs[0]
        producer = None if value is None else value.producer()
        return producer if is_op(producer, *LINEAR) else None
    if is_op(node, *ELEMENTWISE):
        producers = [value.producer() for value in node.inputs if value is not None]
        return next((layer for layer in producers if is_op(layer, *LAYERS)), None)
    return None


def _backward_obstacle(node: ir.Node) -> str | None:
    value = node.inputs[0]
    assert value is not None
    layer, producer = _layer_before(node), value.producer()
    if producer is None:
        return f"its input is the graph input '{value.name}'"
    if layer is None:
        return f"its input comes from {producer.op_type} '{producer.name}'"
    return _layer_obstacle(layer, node)


def _layer_obstacle(layer: ir.Node, node: ir.Node) -> str | None:
    """Why `layer` cannot absorb `node`, which reads its output; None where it can."""
    title, value = f"{layer.op_type} '{layer.name}'", layer.outputs[0]
    if sole_consumer(value) is not node:
        return f"the output of {title} before it is used elsewhere too"
    return _weight_obstacle(layer)


def _weight_obstacle(layer: ir.Node) -> str | None:
    """Why the layer's weight and bias cannot be changed; None where they can."""
    title = f"{layer.op_type} '{layer.name}'"
    weight = constant_value(layer.inputs[1])
    if weight is None:
        return f"the weight of {title} is no constant"
    if is_op(layer, "MatMul") and (weight.ndim != 2 or 2 not in (rank(layer.outputs[0]), rank(layer.inputs[0]))):
        return f"{title} is not known to have two axes"
    if constant_bias(layer, output_channels(layer, weight)) is None:
        return f"the bias of {title} is no constant per channel"
    return None


# ---- forward: affine, then layer


def _fold_forward(node: ir.Node, names: FreshNames) -> bool:
    data, affine = _affine_of_data(node)
    if data is None or affine is None or _forward_obstacle(node, affine) is not None:
        return False
    _, layer = _layer_after(node)
    assert layer is not None
    weight = constant_value(layer.inputs[1])
    assert weight is not None
    added = absorb_inputs(layer, as_float64(weight), affine)[1]
    bias = constant_bias(layer, added.size)
    assert bias is not None
    if added.any():
        layer = _with_bias_slot(layer, names)
    scaled = changed(layer.inputs[1], lambda array: absorb_inputs(layer, as_float64(array), affine)[0])
    write_layer(layer, names, weight=scaled, bias=bias + added if added.any() else None)
    node.outputs[0].replace_all_uses_with(data)
    discard(node)
    logger.debug("%s %s folds into %s %s behind it", node.op_type, node.name, layer.op_type, layer.name)
    return True


def _affine_of_data(node: ir.Node) -> tuple[ir.Value | None, ChannelAffine | None]:
    """The data input of an affine node and its map; a None where the node is not affine per channel."""
    if is_op(node, "BatchNormalization"):
        return node.inputs[0], batch_norm_affine(node)
    data = next((value for value in node.inputs if value is not None and not is_constant(value)), None)
    if data is None or data.shape is None or len(data.shape) < 2 or not isinstance(data.shape[1], int):
        return None, None
    return data, elementwise_affine(node, data, len(data.shape), data.shape[1])


def _layer_after(node: ir.Node) -> tuple[ir.Value, ir.Node | None]:
    """The next node that affine maps do not commute with (as with pooling, Flatten), and the value it reads."""
    value = node.outputs[0]
    while (reader := sole_consumer(value)) is not None and _keeps_channels(reader):
        value = reader.outputs[0]
    return value, reader


def _keeps_channels(node: ir.Node) -> bool:
    if is_op(node, "AveragePool"):
        return not _pads(node) and node.attributes.get_int("ceil_mode", 0) == 0
    return is_op(node, "GlobalAveragePool") or (is_op(node, "Flatten") and node.attributes.get_int("axis", 1) == 1)


def _pads(node: ir.Node) -> bool:
    explicit = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return not explicit or any(node.attributes.get_ints("pads", ()))


def _forward_obstacle(node: ir.Node, affine: ChannelAffine) -> str | None:
    value, layer = _layer_after(node)
    if value.is_graph_output():
        return f"its output '{value.name}' leaves the graph"
    if layer is None:
        return "its output is used elsewhere than in one node of the main graph"
    title = f"{layer.op_type} '{layer.name}'"
    if not is_op(layer, "Conv", "Gemm", "MatMul"):
        return f"its output goes to {title}"
    if layer.inputs[0] is not value or layer.attributes.get_int("transA", 0) != 0:
        return f"its output is not the data input of {title}"
    if (obstacle := _weight_obstacle(layer)) is not None:
        return obstacle
    if is_op(layer, "Conv") and affine.shift.any() and _pads(layer):
        return f"{title} behind it pads with zeros, which its shift does not reach"
    return None


# ---- the layer's own numbers


def _with_bias_slot(layer: ir.Node, names: FreshNames) -> ir.Node:
    """The layer itself, or the Gemm that takes the place of a MatMul."""
    if not is_op(layer, "MatMul"):
        return layer
    gemm = ir.node("Gemm", layer.inputs, name=layer.name)
    replace_with(layer, gemm)
    return gemm
