"""Bias correction: rounding weights shifts the mean of every output channel; the bias takes the shift back.

    b' = b - sum over (channel m, tap) of (Q(W) - W) * E[x_m]        (HPTQ, arXiv 2109.09113; DFQ, arXiv 1906.04721, Eq. 17)
"""

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.quant_plan import TensorQuant


def corrected_bias(node: ir.Node, quant: TensorQuant, mean: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """The new bias of `node`, or None where the operator has none to correct.

    mean: (C_in,) expectation of the node's input per channel, over images and positions; borders are neglected.
    """
    weight_value = node.inputs[1]
    if weight_value is None or weight_value.const_value is None:
        return None
    weight = weight_value.const_value.numpy().astype(np.float64)
    error = quant.round_trip(weight) - weight
    match node.op_type:
        case "Conv":  # (C_out, C_in / group, taps...)
            group = node.attributes.get_int("group", 1)
            per_channel = error.reshape(group, weight.shape[0] // group, weight.shape[1], -1).sum(axis=3)
            shift = np.einsum("goi,gi->go", per_channel, mean.reshape(group, -1)).reshape(-1)
        case "ConvTranspose":  # (C_in, C_out / group, taps...): an output position sees one tap in prod(strides)
            group = node.attributes.get_int("group", 1)
            strides = node.attributes.get_ints("strides", (1,))
            per_channel = error.reshape(group, weight.shape[0] // group, weight.shape[1], -1).sum(axis=3)
            shift = np.einsum("gio,gi->go", per_channel, mean.reshape(group, -1)).reshape(-1) / math.prod(strides)
        case "Gemm":
            alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
            matrix = error if not node.attributes.get_int("transB", 0) else error.T  # (C_in, C_out)
            if beta == 0.0:
                return None
            shift = alpha / beta * (mean @ matrix)
        case _:
            return None
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    if bias_value is not None and bias_value.const_value is None:
        return None
    bias = 0.0 if bias_value is None or bias_value.const_value is None else bias_value.const_value.numpy()
    corrected: NDArray[np.float32] = (bias - shift).astype(np.float32)
    return corrected
