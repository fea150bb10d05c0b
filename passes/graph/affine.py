"""Affine maps of channels, y = scale * x + shift along axis 1, and the weights that absorb them. All in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray

from passes.graph.editing import FreshNames, as_float64, constant_value, is_op, set_constant_input

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ChannelAffine:
    """One scale and one shift per channel."""

    scale: Float64[Array, "c"]
    shift: Float64[Array, "c"]


def channel_vector(
    constant: Shaped[NDArray[Any], "..."], rank: int, channels: int
) -> Float64[Array, "{channels}"] | None:
    """(C,) if adding `constant` to a tensor (N, C, ...) of this rank acts per channel or on all alike, else None."""
    if constant.ndim > rank or rank < 2:
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1) or shape[1] not in (1, channels):
        return None
    return np.broadcast_to(as_float64(constant).reshape(-1), (channels,)).copy()


def batch_norm_affine(node: ir.Node) -> ChannelAffine | None:
    """The affine map of a BatchNormalization in inference mode with constant, finite parameters; else None."""
    arrays = [constant_value(value) for value in node.inputs[1:5]]
    if node.attributes.get_int("training_mode", 0) or any(array is None for array in arrays):
        return None
    gamma, beta, mean, var = (as_float64(np.asarray(array)) for array in arrays)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
        affine = ChannelAffine(scale=scale, shift=beta - mean * scale)
    return affine if np.isfinite(affine.scale).all() and np.isfinite(affine.shift).all() else None


def elementwise_affine(node: ir.Node, data: ir.Value, rank: int, channels: int) -> ChannelAffine | None:
    """The affine map of Mul, Div, Add, Sub between `data` and a constant that acts per channel; else None."""
    first = node.inputs[0] is data
    if not (is_op(node, "Mul", "Add") or (first and is_op(node, "Div", "Sub"))):
        return None
    constant = constant_value(node.inputs[1 if first else 0])
    vector = None if constant is None else channel_vector(constant, rank, channels)
    if vector is None or not np.isfinite(vector).all() or (is_op(node, "Div") and not vector.all()):
        return None
    one, zero = np.ones(channels), np.zeros(channels)
    if is_op(node, "Add", "Sub"):
        return ChannelAffine(scale=one, shift=vector if is_op(node, "Add") else -vector)
    return ChannelAffine(scale=vector if is_op(node, "Mul") else 1 / vector, shift=zero)


def output_channels(node: ir.Node, weight: NDArray[Any]) -> int:
    """Size of axis 1 of the output of Conv, ConvTranspose, Gemm or a MatMul of two axes."""
    if is_op(node, "Conv"):
        return int(weight.shape[0])
    if is_op(node, "ConvTranspose"):
        return int(weight.shape[1]) * node.attributes.get_int("group", 1)
    return int(weight.shape[0 if node.attributes.get_int("transB", 0) else 1])


def scale_outputs(
    node: ir.Node, weight: Float64[Array, "*shape"], scale: Float64[Array, "c"]
) -> Float64[Array, "*shape"]:
    """Weight of the layer followed by `scale` (C,): Conv (O, I/g, k...), ConvTranspose (I, O/g, k...), Gemm."""
    if is_op(node, "Conv"):
        return weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
    if is_op(node, "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # (g, I/g, O/g, K)
        return (split * scale.reshape(groups, 1, -1, 1)).reshape(weight.shape)
    return weight * (scale[:, None] if node.attributes.get_int("transB", 0) else scale[None, :])


def absorb_inputs(
    node: ir.Node, weight: Float64[Array, "*shape"], affine: ChannelAffine
) -> tuple[Float64[Array, "*shape"], Float64[Array, "o"]]:
    """Weight and additional bias (O,) of a Conv, Gemm or MatMul that absorbs the affine map of its input.

    Behind Flatten a Gemm reads each of the C channels as a run of K/C features.
    """
    if is_op(node, "Conv"):
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # (g, O/g, I/g, K)
        scale, shift = (part.reshape(groups, 1, -1, 1) for part in (affine.scale, affine.shift))
        return (split * scale).reshape(weight.shape), (split * shift).sum(axis=(2, 3)).reshape(-1)
    transposed = bool(node.attributes.get_int("transB", 0))
    features = weight.T if transposed else weight  # (K, O)
    run = features.shape[0] // affine.scale.size
    scaled = features * np.repeat(affine.scale, run)[:, None]
    with np.errstate(invalid="ignore"):  # infinite weights of a layer that took in a factor too many
        shift = np.repeat(affine.shift, run) @ features * node.attributes.get_float("alpha", 1.0)
    return (scaled.T if transposed else scaled), shift


def rounded_to(dtype: np.dtype[Any], array: Float64[Array, "*shape"]) -> Shaped[NDArray[Any], "*shape"]:
    """The array in a float type; what that does not hold is infinite, which is for the caller to look at."""
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def constant_bias(layer: ir.Node, channels: int) -> Float64[Array, "{channels}"] | None:
    """(C,) the bias of a layer, zeros where it has none; None where it is no constant per channel. With Gemm's beta."""
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    constant = constant_value(value)
    if constant is None:
        return None
    if not is_op(layer, "Gemm"):
        return as_float64(constant)
    vector = channel_vector(constant, 2, channels)
    return None if vector is None else vector * layer.attributes.get_float("beta", 1.0)


def write_layer(
    node: ir.Node,
    names: FreshNames,
    *,
    weight: Float64[Array, "_ _ ..."] | ir.TensorProtocol | None = None,
    bias: Float64[Array, "_"] | None = None,
) -> None:
    """Gives a layer new parameters, rounded to the dtype of its weight; `bias` as `constant_bias` returns it."""
    old = constant_value(node.inputs[1])
    assert old is not None
    dtype = old.dtype
    if weight is not None:
        new = rounded_to(dtype, weight) if isinstance(weight, np.ndarray) else weight
        set_constant_input(node, 1, new, names, f"{node.name}.weight")
    if bias is not None:
        set_constant_input(node, 2, rounded_to(dtype, bias), names, f"{node.name}.bias")
        if is_op(node, "Gemm"):
            node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)  # the bias holds it now
