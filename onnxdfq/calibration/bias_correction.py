"""Bias correction: rounding weights shifts the mean of every output channel; the bias takes the shift back."""

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_constant
from passes.graph.operators import LAYERS
from passes.quantize.grid import covering_power_of_two
from passes.quantize.plan import TensorQuant
from passes.write.biases import accumulator_scale

Vector = NDArray[np.float64]

# Integer kernels add biases of 32 bits; half of their range is left to the products that are added.
GREATEST_BIAS = 2.0**30


def has_bias_to_set(node: ir.Node) -> bool:
    """Whether `node` is a layer whose bias, present or not, is ours to write."""
    if node.op_type not in LAYERS or not is_constant(node.inputs[1]):
        return False
    transposed, beta = node.attributes.get_int("transA", 0), node.attributes.get_float("beta", 1.0)
    if transposed or beta == 0.0:
        return False
    return len(node.inputs) < 3 or node.inputs[2] is None or is_constant(node.inputs[2])


def corrected_bias(
    node: ir.Node, rounded: Float64[Vector, "_ _ ..."], mean: Float64[Vector, "i"], *, shift: float = 0.0
) -> Float32[NDArray[np.float32], "o"]:
    """The bias of a layer that takes back what rounding its weight does to the mean of its output.

    Args:
        node: A layer for which `has_bias_to_set`.
        rounded: Its weight after quantization, in the weight's shape.
        mean: Expectation of the node's input per channel, over images and positions; borders are neglected.
        shift: A constant that is added to the whole input, border included, and that the bias has to take back.

    Source: b' = b - sum over (channel m, tap) of (Q(W) - W) * E[x_m]; HPTQ, arXiv 2109.09113; DFQ, arXiv 1906.04721,
    Eq. 17.
    """
    weight = constant_value(node.inputs[1])
    assert weight is not None
    old = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    excess = _response(node, rounded - weight, mean) + _response(node, rounded, np.full_like(mean, shift))
    corrected: NDArray[np.float32] = ((0.0 if old is None else old.astype(np.float64)) - excess).astype(np.float32)
    return corrected


def with_room_for_bias(
    weight: TensorQuant, bias: Float32[NDArray[np.float32], "o"], source: TensorQuant
) -> TensorQuant:
    """The weight's grid, made coarser by powers of two until the bias fits the accumulator's integer.

    A channel whose weights are all but zero has a tiny scale, and runtimes would wrap or clamp its bias without a word.
    Beside such a bias its weights do not show, so a coarser scale loses nothing.

    Args:
        weight: Per tensor or per output channel.
        bias: Of the layer.
        source: Of the layer's input.

    Returns:
        `weight` itself where the bias fits.
    """
    needed = np.abs(bias, dtype=np.float64) / (GREATEST_BIAS * source.scale)
    if weight.axis is None or needed.shape != weight.scale.shape:
        needed = needed.max(keepdims=weight.axis is not None)
    excess = np.maximum(needed / weight.scale, 1.0)
    if (excess == 1.0).all():
        return weight
    return replace(weight, threshold=weight.threshold * covering_power_of_two(excess))


def on_accumulator_grid(
    node: ir.Node, bias: Float32[NDArray[np.float32], "*o"], source: TensorQuant, weight: TensorQuant
) -> Float32[NDArray[np.float32], "*o"]:
    """The bias rounded to what an integer kernel adds: multiples of input scale times weight scale.

    Runtimes round a float bias so by themselves. Rounded here, the file computes what the kernel computes, and engine
    and runtime agree to the last bit.

    Args:
        node: The layer.
        bias: (C_out,).
        source: Grid of the layer's input.
        weight: Grid of its weight.

    Returns:
        (C_out,); `bias` itself where the sums are scaled before the bias is added.
    """
    scale = accumulator_scale(node, source.scale, weight.scale, bias.size) if bias.ndim == 1 else None
    if scale is None:
        return bias
    return np.asarray(np.rint(bias / scale) * scale, np.float32)


def _response(
    node: ir.Node, weight: Float64[Vector, "_ _ ..."], constant: Float64[Vector, "i"]
) -> Float64[Vector, "o"]:
    """What the layer without bias makes of an input of `constant` everywhere, in units of its bias."""
    if node.op_type == "Gemm":
        alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
        return alpha / beta * np.asarray(constant @ (weight.T if node.attributes.get_int("transB", 0) else weight))
    group = node.attributes.get_int("group", 1)
    per_channel = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).sum(axis=3)
    if node.op_type == "Conv":  # (C_out, C_in / group, taps...)
        return np.asarray(np.einsum("goi,gi->go", per_channel, constant.reshape(group, -1))).reshape(-1)
    # ConvTranspose (C_in, C_out / group, taps...): an output position sees one tap in prod(strides)
    summed = np.asarray(np.einsum("gio,gi->go", per_channel, constant.reshape(group, -1))).reshape(-1)
    return summed / math.prod(node.attributes.get_ints("strides", (1,)))
