"""The running statistics of a model's batch normalizations."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_op, name_of


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
