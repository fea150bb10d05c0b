"""The running statistics of a model's batch normalizations, and the signs of batch normalizations that are folded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from passes.graph.affine import channel_vector
from passes.graph.editing import constant_value, is_op, name_of, rank, sole_consumer
from passes.graph.operators import ELEMENTWISE, LINEAR


@dataclass(frozen=True, kw_only=True)
class BatchNormStats:
    """Of a BatchNormalization: scale * (x - mean) / sqrt(var + epsilon) + bias along axis 1 of its input x."""

    node: str
    value: str  # name of the node's input: the value whose batch statistics mean and var describe
    mean: Float32[NDArray[np.float32], "c"]
    var: Float32[NDArray[np.float32], "c"]  # biased, without epsilon
    scale: Float32[NDArray[np.float32], "c"]
    bias: Float32[NDArray[np.float32], "c"]
    epsilon: float


def read_batch_norms(model: ir.Model) -> tuple[BatchNormStats, ...]:
    """The running statistics of every BatchNormalization of the main graph, in graph order.

    Where the node stands does not matter (after Conv, ConvTranspose, Gemm, a sum, before Conv), nor whether two nodes
    share their initializers (each is listed), nor `training_mode` (the running statistics are there all the same). A
    node whose parameters are computed by the graph has none to read and is left out; `unfolded_batch_norms` names it.
    """
    return tuple(stats for node in model.graph if (stats := _stats(node)) is not None)


def _stats(node: ir.Node) -> BatchNormStats | None:
    if not is_op(node, "BatchNormalization"):
        return None
    value = node.inputs[0]
    arrays = [constant_value(parameter) for parameter in node.inputs[1:5]]
    if value is None or any(array is None for array in arrays):
        return None
    scale, bias, mean, var = (np.asarray(array, dtype=np.float32) for array in arrays)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return BatchNormStats(
        node=name_of(node), value=name_of(value), mean=mean, var=var, scale=scale, bias=bias, epsilon=epsilon
    )


def folded_batch_norms(model: ir.Model) -> tuple[str, ...]:
    """Names of nodes that hold a folded batch normalization, as far as the graph shows it, in graph order.

    First the normalizations that were rewritten as arithmetic (`rewritten_batch_norms`). In a model without any
    BatchNormalization also every convolution, if there are two or more and all carry a bias: a convolution in front of
    a batch normalization is trained without one, so folding is the usual reason.
    """
    rewritten = rewritten_batch_norms(model)
    convolutions = [node for node in model.graph if is_op(node, "Conv", "ConvTranspose")]
    intact = any(is_op(node, "BatchNormalization") for node in model.graph)
    biased = [node for node in convolutions if len(node.inputs) > 2 and node.inputs[2] is not None]
    if intact or len(convolutions) < 2 or len(biased) < len(convolutions):
        return rewritten
    found = {*rewritten, *(name_of(node) for node in biased)}
    return tuple(name_of(node) for node in model.graph if name_of(node) in found)


def rewritten_batch_norms(model: ir.Model) -> tuple[str, ...]:
    """Names of the first node of each chain of Mul, Div, Add, Sub by per-channel constants beside a convolution.

    A chain counts when it both scales and shifts, and follows a layer with weights or goes to one, or to Relu or Clip.
    One that starts at a graph input is the normalization of the image and does not count.
    """
    names: list[str] = []
    inside: set[ir.Node] = set()
    for node in model.graph:
        if node in inside or not _per_channel(node):
            continue
        chain = list(_chain(node))
        inside.update(chain)
        if _scales(chain) and _shifts(chain) and _beside_weights(chain):
            names.append(name_of(node))
    return tuple(names)


def _operand(node: ir.Node) -> tuple[ir.Value, NDArray[Any]] | None:
    """The (data, constant) pair of a two-operand node, None where there is no such pair."""
    for data, other in ((0, 1), (1, 0)):
        value, constant = node.inputs[data], constant_value(node.inputs[other])
        if value is not None and constant is not None and constant_value(value) is None:
            return value, constant
    return None


def _per_channel(node: ir.Node) -> bool:
    if not is_op(node, *ELEMENTWISE):
        return False
    pair = _operand(node)
    if pair is None:
        return False
    value, constant = pair
    axes = rank(value) or rank(node.outputs[0]) or constant.ndim
    # A scalar is an activation's or an attention's constant, a vector over the channels is a normalization's.
    return constant.size > 1 and channel_vector(constant, axes, constant.size) is not None


def _chain(first: ir.Node) -> Iterator[ir.Node]:
    node: ir.Node | None = first
    while node is not None and _per_channel(node):
        yield node
        node = sole_consumer(node.outputs[0])


def _scales(chain: list[ir.Node]) -> bool:
    return any(is_op(node, "Mul", "Div") for node in chain)


def _shifts(chain: list[ir.Node]) -> bool:
    return any(is_op(node, "Add", "Sub") for node in chain)


def _beside_weights(chain: list[ir.Node]) -> bool:
    pair = _operand(chain[0])
    if pair is None or pair[0].is_graph_input():
        return False
    after = [use.node for use in chain[-1].outputs[0].uses()]
    return is_op(pair[0].producer(), *LINEAR) or any(is_op(node, *LINEAR, "Relu", "Clip") for node in after)
