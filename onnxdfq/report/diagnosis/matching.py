"""The float model beside a QDQ file: which weight is which, and which functions a quantizer took the place of."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.report.diagnosis.switches import Constant
from passes.graph.bodies import titled_nodes
from passes.graph.editing import constant_value, is_constant, is_op, name_of, scalar_value
from passes.graph.operators import ACTIVATIONS, LAYERS, LINEAR
from passes.quantize.quantizers import Quantizer, Quantizers

Array = Float32[NDArray[np.float32], "*shape"]
Bounds = tuple[float | None, float | None]

MOST_ERROR = 0.7  # of a channel, relative: what rounding to 2 bits costs is less
SIX = 6.0


def matched(model: ir.Model, original: ir.Model) -> dict[str, Constant]:
    """Initializer → what it is in either network, for the weights and biases of layers that are the same in both.

    Layers are the same by name, by the name of what they compute, or by their place where both have as many. Not those
    whose weights differ by more than rounding in most channels: channels were evened out, or the layer was trained.

    Args:
        model: Of the quantized network, its quantizers taken out.
        original: Float, BatchNormalization folded.
    """
    layers, others = _layers(model.graph), _layers(original.graph)
    by_name = {title: node for _, title, node in others if node.name}
    by_output = {prefix + name_of(node.outputs[0]): node for prefix, _, node in others}
    same = len(layers) == len(others)
    found: dict[str, Constant] = {}
    for place, (_, title, node) in enumerate(layers):
        in_place = others[place][-1] if same else None
        candidates = (by_name.get(title), by_output.get(name_of(node.outputs[0])), in_place)
        for other in candidates:
            pair = None if other is None else _pair(node, other)
            if pair is not None:
                found |= pair
                break
    return found


def _layers(graph: ir.Graph) -> list[tuple[str, str, ir.Node]]:
    """Linear nodes with a constant operand, those in bodies among them, as `titled_nodes` gives them."""
    return [entry for entry in titled_nodes(graph) if is_op(entry[-1], *LINEAR) and _weight(entry[-1]) is not None]


def _weight(node: ir.Node) -> ir.Value | None:
    """The constant operand of a linear node."""
    for value in node.inputs[1::-1]:
        if value is not None and is_constant(value):
            return value
    return None


def _pair(node: ir.Node, other: ir.Node) -> dict[str, Constant] | None:
    weight, exact = _weight(node), _weight(other)
    if weight is None or exact is None or not weight.is_initializer():
        return None
    ours, theirs = constant_value(weight), constant_value(exact)
    assert ours is not None and theirs is not None
    if ours.shape != theirs.shape:
        theirs = theirs.T
    if ours.shape != theirs.shape or ours.dtype.kind != "f" or not _close(node, ours, theirs):
        return None
    found = {name_of(weight): Constant(quantized=ours.astype(np.float32), floats=theirs.astype(np.float32))}
    bias = node.inputs[2] if is_op(node, *LAYERS) and len(node.inputs) > 2 else None
    array = constant_value(bias)
    if bias is not None and array is not None and bias.is_initializer() and array.dtype.kind == "f":
        given = constant_value(other.inputs[2]) if is_op(other, *LAYERS) and len(other.inputs) > 2 else None
        if given is None and not is_op(other, *LAYERS):
            return found  # an Add behind a MatMul has it, and keeps it
        exact_bias = np.zeros_like(array) if given is None else np.broadcast_to(given, array.shape)
        found[name_of(bias)] = Constant(quantized=array.astype(np.float32), floats=exact_bias.astype(np.float32))
    return found


def _close(node: ir.Node, ours: NDArray[np.floating], theirs: NDArray[np.floating]) -> bool:
    axis = output_axis(node, ours.ndim)
    one, other = (
        np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1) for array in (ours, theirs)
    )
    size = np.sqrt(np.square(other).sum(axis=1))
    error = np.sqrt(np.square(one - other).sum(axis=1))
    return bool(np.mean(error <= MOST_ERROR * np.maximum(size, 1e-12)) >= 0.5)


def output_axis(node: ir.Node, rank: int) -> int:
    """Of the weight of a linear node."""
    if is_op(node, "ConvTranspose"):
        return 1
    if is_op(node, "Gemm"):
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 0 if is_op(node, "Conv") else max(rank - 1, 0)


def with_bounds(found: Quantizers, graph: ir.Graph, original: ir.Graph | None) -> Quantizers:
    """The quantizers with bounds where they took the place of a Relu or a Clip, which some tools leave out: the grid
    begins at 0 or ends at 6 all the same.

    Args:
        found: Of a graph.
        graph: With its quantizers.
        original: Float. Without it, a grid that begins at 0 right behind a layer is taken for a Relu, and one that ends
            at 6 for a Relu6; whether it only cuts off cannot be told.
    """
    makers = {name_of(value): node for node in graph for value in node.outputs}
    known = {} if original is None else {name_of(value): node for node in original for value in node.outputs}
    return replace(
        found,
        activations=tuple(
            replace(one, bounds=_lost(one, makers.get(one.source), known, told=original is not None))
            if one.bounds == (None, None)
            else one
            for one in found.activations
        ),
    )


def _lost(quantizer: Quantizer, maker: ir.Node | None, known: Mapping[str, ir.Node], *, told: bool) -> Bounds:
    if maker is None or is_op(maker, *ACTIVATIONS):
        return None, None
    if told:
        other = known.get(quantizer.source)
        if is_op(other, "Relu"):
            return 0.0, None
        if other is not None and is_op(other, "Clip"):
            low, high = (scalar_value(value) for value in (*other.inputs[1:3], None, None)[:2])
            return low, high
        return None, None
    if not quantizer.grid.per_tensor or not is_op(maker, *LINEAR, "Add", "BatchNormalization"):
        return None, None
    low, high = quantizer.grid.ends
    return (0.0 if low == 0 else None), (SIX if low == 0 and abs(high / SIX - 1) < 0.02 else None)
