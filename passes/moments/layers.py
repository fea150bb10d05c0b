"""The spread of what a layer without normalization gives, judged by the layers with one before it."""

import math
from collections import deque

import numpy as np
import onnx_ir as ir

from passes.graph.affine import Array, ChannelAffine, absorb_inputs
from passes.graph.editing import as_float64, constant_value, is_op, name_of
from passes.moments.spread import Spread

REMEMBERED = 8  # layers: those near are the most alike
DEAD = 1e-3  # so much narrower than independent inputs would make it, a channel has died and tells nothing


class LayerSpreads:
    """Inputs of a layer are neither independent of each other nor do they all grow together; in between lies

        std = independent^(1 - k) * together^k,    independent = sqrt(W² v),  together = |W| sqrt(v),

    v the variances of the inputs. A layer in front of a batch normalization tells its k, for there std is known; k is
    the median of the last such layers, and 0 where there is none.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[ir.Node, Array, Array]] = deque(maxlen=REMEMBERED)

    def learn(self, node: ir.Node, source: Spread, std: Array) -> None:
        """std: (C_out,) of what the layer gives, as the statistics say."""
        self._seen.append((node, source.std, std))

    def __call__(self, node: ir.Node, source: Spread) -> Spread | None:
        """Of what the layer gives; None where its parameters are not constant. Borders are neglected."""
        mean, extremes = _mean(node, source.mean), _extremes(node, source.std)
        if mean is None or extremes is None:
            return None
        independent, together = extremes
        share = self._share()
        std = independent ** (1 - share) * together**share
        return Spread.normal(mean, std, origin=name_of(node.outputs[0]), approximate=True)

    def _share(self) -> float:
        shares = []
        for node, source, std in self._seen:
            extremes = _extremes(node, source)
            if extremes is None:
                continue
            independent, together = extremes
            ratio = np.divide(std, independent, out=np.zeros_like(std), where=independent > 0)
            useful = (ratio > DEAD) & (together > 1.01 * independent)
            if useful.any():
                each = np.log(ratio[useful]) / np.log(together[useful] / independent[useful])
                shares.append(float(np.clip(np.median(each), 0, 1)))
        return float(np.median(shares)) if shares else 0.0


def _mean(node: ir.Node, mean: Array) -> Array | None:
    weight, bias = constant_value(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or node.attributes.get_int("transA", 0) != 0:
        return None
    response = layer_response(node, as_float64(weight), mean)
    if bias is None:
        return response
    constant = constant_value(bias)
    if constant is None:
        return None
    return response + node.attributes.get_float("beta", 1.0) * as_float64(constant).reshape(-1)


def _extremes(node: ir.Node, std: Array) -> tuple[Array, Array] | None:
    """(C_out,) twice: were the inputs independent, and did they all grow together."""
    weight = constant_value(node.inputs[1])
    if weight is None or node.attributes.get_int("transA", 0) != 0:
        return None
    array, alpha = as_float64(weight), node.attributes.get_float("alpha", 1.0)
    # the response to squares has alpha once
    independent = np.sqrt(alpha * layer_response(node, np.square(array), np.square(std)))
    return independent, np.abs(layer_response(node, np.abs(array), std))


def layer_response(node: ir.Node, weight: Array, constant: Array) -> Array:
    """(C_out,) what Conv, ConvTranspose or Gemm with this weight and no bias makes of `constant` (C_in,) everywhere.

    Away from borders; the mean over the positions of an upsampling ConvTranspose.
    """
    if not is_op(node, "ConvTranspose"):
        return absorb_inputs(node, weight, ChannelAffine(scale=np.ones_like(constant), shift=constant))[1]
    group = node.attributes.get_int("group", 1)
    split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).sum(axis=3)  # (g, I/g, O/g)
    summed = np.einsum("gio,gi->go", split, constant.reshape(group, -1)).reshape(-1)
    return np.asarray(summed / math.prod(node.attributes.get_ints("strides", (1,))))
