"""Weights of all layers in one form: (g, O/g, I/g, K), for g groups and K taps."""

import math
from typing import TypeVar

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped
from numpy.typing import NDArray

from passes.graph.editing import is_op, static_dims

Number = TypeVar("Number", bound=np.generic)


def is_depthwise(node: ir.Node) -> bool:
    """Whether a convolution of any direction has several groups, and in each a single input channel."""
    sizes = static_dims(node.inputs[1]) if is_op(node, "Conv", "ConvTranspose") else None
    groups = node.attributes.get_int("group", 1)
    return groups > 1 and sizes is not None and (sizes[1] == 1 if is_op(node, "Conv") else sizes[0] == groups)


def to_filters(node: ir.Node, weight: Shaped[NDArray[Number], "_ _ ..."]) -> Shaped[NDArray[Number], "g o i k"]:
    """What each output multiplies with.

    Args:
        node: Conv, ConvTranspose, Gemm, or MatMul with a weight of two axes.
        weight: of the shape of the node's weight.

    Taps of a ConvTranspose are turned round, so that they are those of the convolution that gives the same outputs
    from inputs with zeros between them.
    """
    if is_op(node, "Conv", "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], math.prod(weight.shape[2:]))
        return split if is_op(node, "Conv") else split[..., ::-1].swapaxes(1, 2)
    return (weight if _has_rows(node) else weight.T)[None, :, :, None]


def from_filters(
    node: ir.Node, filters: Shaped[NDArray[Number], "g o i k"], shape: tuple[int, ...]
) -> Shaped[NDArray[Number], "_ _ ..."]:
    """Back to a weight of `shape`, as `to_filters` took it."""
    if is_op(node, "Conv"):
        return filters.reshape(shape)
    if is_op(node, "ConvTranspose"):
        return filters.swapaxes(1, 2)[..., ::-1].reshape(shape)
    rows = filters[0, :, :, 0]
    return rows if _has_rows(node) else rows.T


def _has_rows(node: ir.Node) -> bool:
    """Whether the weight is (O, I)."""
    return is_op(node, "Gemm") and node.attributes.get_int("transB", 0) != 0
