"""The spread of the output of a layer without batch normalization, judged by the layers that have one."""

import math
from collections import deque
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64

from passes.graph.affine import Array, ChannelAffine, absorb_inputs
from passes.graph.editing import as_float64, constant_value, is_op, name_of
from passes.moments.spread import Spread

LAYERS_COMPARED = 8  # the last ones: neighbouring layers are the most alike
LEAST_RATIO = 1e-3  # of a deviation to that of independent inputs; a channel below it is dead and says nothing of k


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """A layer whose output has a batch normalization. source, std: deviations of its input and its output."""

    node: ir.Node
    source: Float64[Array, "i"]
    std: Float64[Array, "o"]

    @cached_property
    def exponent(self) -> float | None:
        """Its k (`LayerSpreads`), None where none of its channels tells it."""
        extremes = _extremes(self.node, self.source)
        if extremes is None:
            return None
        independent, together = extremes
        ratio = np.divide(self.std, independent, out=np.zeros_like(self.std), where=independent > 0)
        useful = (ratio > LEAST_RATIO) & (together > 1.01 * independent)
        if not useful.any():
            return None
        each = np.log(ratio[useful]) / np.log(together[useful] / independent[useful])
        return float(np.clip(np.median(each), 0, 1))


class LayerSpreads:
    """Standard deviations of the outputs of layers, from those of their inputs.

    The inputs of a layer are neither independent nor fully correlated. Between these extremes lies

        std = independent^(1 - k) * together^k,    independent = sqrt(W² v),  together = |W| sqrt(v),

    v the variances of the inputs. In front of a batch normalization std is given, so such a layer tells its k. For
    others k is the median of the last LAYERS_COMPARED such layers, and 0 where there is none.
    """

    def __init__(self) -> None:
        self._compared: deque[_Compared] = deque(maxlen=LAYERS_COMPARED)

    def learn(self, node: ir.Node, source: Spread, std: Float64[Array, "o"]) -> None:
        """Take in a layer whose output has a batch normalization.

        source: the spread of the layer's input. std: (C_out,) of its output, from the running variance.
        """
        self._compared.append(_Compared(node=node, source=source.std, std=std))

    def __call__(self, node: ir.Node, source: Spread) -> Spread | None:
        """The spread of the layer's output; None where its parameters are not constant. Borders are neglected."""
        mean, extremes = _mean(node, source.mean), _extremes(node, source.std)
        if mean is None or extremes is None:
            return None
        independent, together = extremes
        k = self._exponent()
        std = independent ** (1 - k) * together**k
        return Spread.normal(mean, std, origin=name_of(node.outputs[0]), approximate=True)

    def _exponent(self) -> float:
        exponents = [one.exponent for one in self._compared if one.exponent is not None]
        return float(np.median(exponents)) if exponents else 0.0


def _mean(node: ir.Node, mean: Float64[Array, "i"]) -> Float64[Array, "o"] | None:
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


def _extremes(node: ir.Node, std: Float64[Array, "i"]) -> tuple[Float64[Array, "o"], Float64[Array, "o"]] | None:
    """The output's deviation with independent inputs, and with fully correlated ones."""
    weight = constant_value(node.inputs[1])
    if weight is None or node.attributes.get_int("transA", 0) != 0:
        return None
    array, alpha = as_float64(weight), node.attributes.get_float("alpha", 1.0)
    # the response to squares has alpha once
    independent = np.sqrt(alpha * layer_response(node, np.square(array), np.square(std)))
    return independent, np.abs(layer_response(node, np.abs(array), std))


def layer_response(
    node: ir.Node, weight: Float64[Array, "_ _ ..."], constant: Float64[Array, "i"]
) -> Float64[Array, "o"]:
    """(C_out,) the output of Conv, ConvTranspose or Gemm, without its bias, for an input of constant channels.

    weight: in the layer's own layout. constant: (C_in,) the input at every position. The output is that away from
    borders; of an upsampling ConvTranspose it is the mean over the positions.
    """
    if not is_op(node, "ConvTranspose"):
        return absorb_inputs(node, weight, ChannelAffine(scale=np.ones_like(constant), shift=constant))[1]
    group = node.attributes.get_int("group", 1)
    split = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).sum(axis=3)  # (g, I/g, O/g)
    summed = np.einsum("gio,gi->go", split, constant.reshape(group, -1)).reshape(-1)
    return np.asarray(summed / math.prod(node.attributes.get_ints("strides", (1,))))
