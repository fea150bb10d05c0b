"""Biases in the form that a target demands: int32 with the scale of the accumulator, or int8 with their own."""

import logging

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from passes.graph.editing import FreshNames, add_initializer, constant_value, is_op
from passes.graph.operators import LAYERS
from passes.quantize.plan import TensorQuant

logger = logging.getLogger(__name__)


def accumulator_scale(
    node: ir.Node,
    source: Float[NDArray[np.floating], ""] | np.floating,
    weight: Float[NDArray[np.floating], "*channels"] | np.floating,
    channels: int,
) -> Float[NDArray[np.floating], "{channels}"] | None:
    """(channels,) the scale of the integer sums of a layer: that of its input times that of its weight.

    Args:
        node: the layer.
        source: () scale of the input.
        weight: () or (C,) scale of the weight along its output channels.
        channels: of the output.

    Returns:
        In the dtype of the factors; None where the sums are scaled before the bias is added (Gemm's alpha and beta).
    """
    if is_op(node, "Gemm"):
        alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        if (alpha, beta) != (1.0, 1.0):
            return None
    product = np.asarray(source * weight)
    # the channels of a grouped ConvTranspose repeat the weight's output channels once per group
    if channels % product.size:
        return None
    return np.tile(product.reshape(-1), channels // product.size)


def quantize_bias(graph: ir.Graph, names: FreshNames, node: ir.Node, quant: TensorQuant | None) -> None:
    """Makes the constant bias of a layer an integer initializer and a DequantizeLinear that bears the bias's name.

    quant: its own 8-bit grid; None for int32 with the accumulator's scale, which has to be exactly the product of the
    two float32 scales: other layers runtimes compute in float. A bias stays where the layer's input or weight is float.
    """
    bias = node.inputs[2] if is_op(node, *LAYERS) and len(node.inputs) > 2 else None
    array = constant_value(bias)
    if bias is None or array is None or array.ndim != 1:
        return
    if quant is not None:
        integers, scale = quant.integers(array).astype(np.int8), quant.scale.astype(np.float32)
    else:
        factors = [_scale(value) for value in node.inputs[:2]]
        if factors[0] is None or factors[1] is None:
            return
        found = accumulator_scale(node, factors[0], factors[1], len(array))
        if found is None:
            return
        scale = found.astype(np.float32)
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(array / scale.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        if factors[1].ndim == 0:
            scale = scale[0]
    name = bias.name or names("bias")
    if bias.is_initializer() and len(tuple(bias.uses())) == 1 and not bias.is_graph_output():
        del graph.initializers[name]
    else:
        name = names(f"{name}_dequantized")
    scale = np.asarray(scale)
    inputs = [
        add_initializer(graph, names(f"{name}_quantized"), integers),
        add_initializer(graph, names(f"{name}_scale"), scale),
        add_initializer(graph, names(f"{name}_zero_point"), np.zeros(scale.shape, integers.dtype)),
    ]
    dequantize = ir.node(
        "DequantizeLinear", inputs, {"axis": 0} if scale.ndim else {}, name=names(f"{name}_dequantize")
    )
    output = dequantize.outputs[0]
    output.name, output.type, output.shape = name, bias.type, ir.Shape(array.shape)
    graph.insert_before(node, dequantize)
    node.replace_input_with(2, output)
    logger.debug("the bias %s of %s becomes %s", name, node.name, integers.dtype)


def _scale(value: ir.Value | None) -> Float32[NDArray[np.float32], "..."] | None:
    """The scale of the DequantizeLinear that computes `value`, None where another operator does."""
    producer = None if value is None else value.producer()
    if producer is None or not is_op(producer, "DequantizeLinear"):
        return None
    return constant_value(producer.inputs[1])
