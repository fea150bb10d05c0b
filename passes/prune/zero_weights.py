"""Weights that become zero: the smallest of each layer, or two of every four; and `ZeroWeights`, which zeroes them."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool
from numpy.typing import NDArray

from passes.graph.editing import FreshNames, constant_value, is_op, name_of, set_constant_input
from passes.graph.operators import LINEAR
from passes.prune.plan import CannotPrune, ZeroPlan

logger = logging.getLogger(__name__)

KEPT, OF = 2, 4
"""The pattern that sparse tensor cores read: two of four neighbouring input channels."""


def smallest_weights(model: ir.Model, *, sparsity: float) -> ZeroPlan:
    """Of every layer with a constant weight this share of the weights, those of least magnitude.

    Args:
        model: with layers of unique names. It is only read.
        sparsity: between 0 and 1.

    Raises:
        CannotPrune: a layer would be left without weights.
    """
    masks = {}
    for node, weight in prunable_layers(model):
        zeros = round(sparsity * weight.size)
        if zeros >= weight.size:
            raise CannotPrune(
                f"A sparsity of {sparsity:g} leaves no weight in {node.op_type} {name_of(node)!r}, which has "
                f"{weight.size}; ask for less."
            )
        mask = np.ones(weight.size, bool)
        mask[np.argsort(np.abs(weight).reshape(-1), kind="stable")[:zeros]] = False
        masks[name_of(node)] = mask.reshape(weight.shape)
    return ZeroPlan(masks=masks, skipped={})


def two_of_four(model: ir.Model) -> ZeroPlan:
    """Of every four neighbouring input channels the two greatest weights stay, for each output and tap.

    A layer whose input channels are no multiple of four (the first, depthwise ones) is left as it is.
    """
    masks, skipped = {}, {}
    for node, weight in prunable_layers(model):
        axis = input_axis(node)
        inputs = weight.shape[axis]
        if is_op(node, "ConvTranspose"):
            inputs //= node.attributes.get_int("group", 1)
        if inputs % OF:
            skipped[name_of(node)] = f"its {inputs} input channels are no multiple of {OF}"
            continue
        masks[name_of(node)] = _greatest(weight, axis)
    return ZeroPlan(masks=masks, skipped=skipped)


def prunable_layers(model: ir.Model) -> Iterator[tuple[ir.Node, NDArray[Any]]]:
    """The layers with a constant weight of floats, and the weight."""
    for node in model.graph:
        weight = constant_value(node.inputs[1]) if is_op(node, *LINEAR) else None
        if weight is not None and weight.dtype.kind == "f" and weight.ndim > 1 and weight.size:
            yield node, weight


class ZeroWeights(ir.passes.InPlacePass):
    """Sets the weights of a plan to zero; shapes stay."""

    def __init__(self, plan: ZeroPlan) -> None:
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names = FreshNames(model.graph)
        for node, weight in prunable_layers(model):
            if (mask := self.plan.masks.get(name_of(node))) is None:
                continue
            zeroed = np.where(mask, weight, np.zeros((), weight.dtype))
            set_constant_input(node, 1, zeroed, names, f"{node.name}.weight")
            logger.debug("%s: %d of %d weights become zero", node.name, mask.size - int(mask.sum()), mask.size)
        return ir.passes.PassResult(model, modified=bool(self.plan.masks))


def input_axis(node: ir.Node) -> int:
    """Of the weight of a layer the axis along which it is summed."""
    if is_op(node, "Conv"):
        return 1
    if is_op(node, "Gemm"):
        return int(bool(node.attributes.get_int("transB", 0)))
    return 0 if is_op(node, "ConvTranspose") else -2


def _greatest(weight: NDArray[Any], axis: int) -> Bool[NDArray[np.bool_], "..."]:
    """True for the KEPT greatest of each OF neighbours along `axis`."""
    rows = np.moveaxis(np.abs(weight), axis, -1)
    blocks = rows.reshape(*rows.shape[:-1], -1, OF)
    order = np.argsort(-blocks, axis=-1, kind="stable")
    mask = np.zeros(blocks.shape, bool)
    np.put_along_axis(mask, order[..., :KEPT], True, axis=-1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(rows.shape), -1, axis))
