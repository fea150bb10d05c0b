"""What stands behind a layer: a BatchNormalization, a constant that is added, a sum with another branch."""

import logging
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from passes.graph.affine import batch_norm_affine, constant_bias, output_channels, rounded_to, write_layer
from passes.graph.channel_paths import layer_weight
from passes.graph.editing import (
    FreshNames,
    constant_value,
    is_constant,
    is_op,
    name_of,
    set_constant_input,
    sole_consumer,
)
from passes.graph.operators import LAYERS, LINEAR
from passes.prune.plan import ChannelPlan, ZeroPlan

logger = logging.getLogger(__name__)

Vector = NDArray[np.float64]
LEAST_SCALE = 1e-3  # of the largest of a normalization: what an output behind a smaller one gives does not matter


def norm_behind(node: ir.Node) -> ir.Node | None:
    """The BatchNormalization that alone reads a layer."""
    norm = sole_consumer(node.outputs[0]) if is_op(node, *LAYERS) else None
    return norm if is_op(norm, "BatchNormalization") else None


def shift_outputs(model: ir.Model, shifts: dict[str, Float64[Vector, "_"]], *, instead: bool = False) -> None:
    """Adds constants to the outputs of layers, in place.

    Where a BatchNormalization alone reads the output, its running mean takes the constant: it is less by as much, and
    so still the mean of what it reads. Else the bias does, of a MatMul the constant that is added to it.

    Args:
        model: whose layers have constant weights, and constant biases or none.
        shifts: layer → (C_out,).
        instead: of the bias that there is.
    """
    names = FreshNames(model.graph)
    for node in model.graph:
        shift = shifts.get(name_of(node))
        if shift is None:
            continue
        bias = _bias(node)
        if bias is None:
            continue
        if instead:
            shift = shift - bias
        norm, added = norm_behind(node), _added(node)
        mean = None if norm is None else constant_value(norm.inputs[3])
        if norm is not None and mean is not None:
            set_constant_input(norm, 3, rounded_to(mean.dtype, mean - shift), names, f"{norm.name}.mean")
            logger.debug("the running mean of %s takes what %s lost", norm.name, node.name)
        elif added is not None:
            adder, slot = added
            constant = constant_value(adder.inputs[slot])
            assert constant is not None
            set_constant_input(adder, slot, rounded_to(constant.dtype, bias + shift), names, f"{adder.name}.bias")
        else:
            write_layer(node, names, bias=bias + shift)
            logger.debug("the bias of %s takes what it lost", node.name)


def can_shift(node: ir.Node) -> bool:
    """Whether `shift_outputs` can."""
    return _bias(node) is not None


def restore_statistics(node: ir.Node, original: ir.Node, plan: ChannelPlan | ZeroPlan) -> None:
    """Gives the BatchNormalization behind a layer the running statistics that it had, in place.

    The repair by moments makes them those of what the layer gives without what goes; a layer that is fitted gives what
    it gave.
    """
    norm, before = norm_behind(node), norm_behind(original)
    if norm is None or before is None or not isinstance(node.graph, ir.Graph):
        return
    kept = plan.values.get(name_of(node.outputs[0])) if isinstance(plan, ChannelPlan) else None
    for slot in (3, 4):
        old = constant_value(before.inputs[slot])
        if old is not None and is_constant(norm.inputs[slot]):
            part = old if kept is None else old[kept.channels]
            set_constant_input(norm, slot, part, FreshNames(node.graph), f"{norm.name}.statistics")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sum:
    """branch: what is added to the output of a layer. scale: (C,) that the output is multiplied with before; None for
    1."""

    branch: ir.Value
    scale: Float64[Vector, "c"] | None

    def scaled(self, error: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
        """What the layer has to give more, so that the sum is more by `error`."""
        if self.scale is None:
            return error
        matters = np.abs(self.scale) > LEAST_SCALE * np.abs(self.scale).max(initial=0)
        inverse = np.divide(1, self.scale, out=np.zeros_like(self.scale), where=matters)
        factors = torch.from_numpy(inverse).to(error)
        return error * factors.reshape(-1, *(1,) * (error.ndim - 2))


def sum_behind(node: ir.Node) -> Sum | None:
    """The sum that alone reads a layer, or its BatchNormalization, and whose other branch is computed without layers
    that come later; else None."""
    norm, added = norm_behind(node), _added(node)
    last = norm if norm is not None else node if added is None else added[0]
    affine = None if norm is None else batch_norm_affine(norm)
    total = sole_consumer(last.outputs[0])
    if total is None or not is_op(total, "Add") or (norm is not None and affine is None):
        return None
    (branch,) = [value for value in total.inputs if value is not last.outputs[0]] or [None]
    if branch is None or branch.shape is None or branch.shape != last.outputs[0].shape or _waits(branch, node):
        return None
    return Sum(branch=branch, scale=None if affine is None else affine.scale)


def _waits(value: ir.Value, node: ir.Node) -> bool:
    """Whether a layer behind `node` has to run before a value is there."""
    assert isinstance(node.graph, ir.Graph)
    position = {each: index for index, each in enumerate(node.graph)}
    waiting, seen = [value], {value}
    while waiting:
        producer = waiting.pop().producer()
        if producer is None or position[producer] < position[node]:
            continue
        if is_op(producer, *LINEAR):
            return True
        new = {each for each in producer.inputs if each is not None} - seen
        seen |= new
        waiting.extend(new)
    return False


def _bias(node: ir.Node) -> Float64[Vector, "_"] | None:
    """(C_out,) that is added to what a layer sums; None where there is nothing that can be changed."""
    added = _added(node)
    if added is not None:
        adder, slot = added
        constant, weight = constant_value(adder.inputs[slot]), constant_value(node.inputs[1])
        assert constant is not None and weight is not None
        return np.broadcast_to(constant.reshape(-1), weight.shape[-1:]).astype(np.float64)
    weight = layer_weight(node)
    return None if weight is None else constant_bias(node, output_channels(node, weight))


def _added(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Behind a MatMul the Add of a constant, one number to a column, and its slot."""
    adder = sole_consumer(node.outputs[0]) if is_op(node, "MatMul") else None
    weight = constant_value(node.inputs[1]) if adder is not None else None
    if adder is None or weight is None or not is_op(adder, "Add"):
        return None
    slot = 1 if adder.inputs[0] is node.outputs[0] else 0
    constant = constant_value(adder.inputs[slot])
    if constant is None or constant.ndim == 0 or not constant.size == constant.shape[-1] == weight.shape[-1]:
        return None
    return adder, slot
