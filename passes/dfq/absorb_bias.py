"""High biases move into the next layer (DFQ, arXiv 1906.04721, section 4.1.3), so that activations need less range."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64
from numpy.typing import NDArray

from passes.graph.affine import ChannelAffine, absorb_inputs, write_layer
from passes.graph.channel_paths import ChannelPath, channel_paths, layer_bias, layers_beside
from passes.graph.editing import FreshNames, is_op, name_of
from passes.moments.moments import Moments

logger = logging.getLogger(__name__)

DEVIATIONS_KEPT = 3.0  # below the mean; 0.135 % of a normal variable lie further below


def high_biases(model: ir.Model, moments: Mapping[str, Moments]) -> dict[str, Float64[NDArray[np.float64], "_"]]:
    """The constants for AbsorbHighBias to take from values: by value name, (C,) of its channels, none negative.

    Args:
        model: with the layers.
        moments: by value name, of the model as it is now (after equalization: scaled).

    DFQ, section 4.1.3: c = max(0, beta - 3 gamma), beta and gamma the mean and standard deviation of the input of a
    Relu: then Relu(x - c) = Relu(x) - c wherever x >= c, which DFQ assumes of all x, and which holds for 99.865 % of a
    normal x. For the others, and no more, the output of the model changes (it is too large by c - x).

    Where a channel of high bias is found: Conv, ConvTranspose or Gemm, then Relu, then possibly MaxPool,
    GlobalAveragePool, Flatten, an AveragePool without padding, then a Gemm or a Conv without padding, each read by the
    next alone. A reader that pads with zeros is passed over: its border would be 0 where the absorbed constant says c.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for path in channel_paths(model, _shifts_through):
        before = moments.get(name_of(path.values[0]))
        if before is None or not _reader_takes_shift(path) or not is_op(next(iter(path.between), None), "Relu"):
            continue
        amount = np.maximum(before.mean - DEVIATIONS_KEPT * before.std, 0)
        if amount.any():
            for value, repeats in zip(path.values, path.repeats, strict=True):
                found[name_of(value)] = np.repeat(amount, repeats)
    return found


class AbsorbHighBias(ir.passes.InPlacePass):
    """Takes constants from the channels of values.

    1. A layer whose output loses a constant: from its bias.
    2. A layer whose input loses a constant: its bias gets what the weights make of it.
    """

    def __init__(self, amounts: Mapping[str, Float64[NDArray[np.float64], "_"]]) -> None:
        self.amounts = amounts

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names, count = FreshNames(model.graph), 0
        for node, weight, after, before in layers_beside(model, self.amounts):
            bias = layer_bias(node)
            assert bias is not None
            if before is not None:
                bias = bias + absorb_inputs(node, weight, ChannelAffine(scale=np.ones_like(before), shift=before))[1]
            write_layer(node, names, bias=bias if after is None else bias - after)
            logger.debug("%s %s: high bias %s", node.op_type, node.name, "absorbed" if after is None else "taken out")
            count += 1
        return ir.passes.PassResult(model, modified=bool(count))


def _shifts_through(node: ir.Node) -> bool:
    """f(x - c) = f(x) - c for every constant c; and Relu, for which it is the assumption."""
    if is_op(node, "AveragePool"):
        explicit = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        whole = node.attributes.get_int("ceil_mode", 0) == 0
        return explicit and whole and not any(node.attributes.get_ints("pads", ()))
    if is_op(node, "Flatten"):
        return node.attributes.get_int("axis", 1) == 1
    # padding of a MaxPool is minus infinity: no border there
    return is_op(node, "Relu", "MaxPool", "GlobalMaxPool", "GlobalAveragePool")


def _reader_takes_shift(path: ChannelPath) -> bool:
    node = path.target
    explicit = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return is_op(node, "Gemm") or (is_op(node, "Conv") and explicit and not any(node.attributes.get_ints("pads", ())))
