"""`BatchNormToConv`: batch normalizations that no layer can absorb become depthwise convolutions."""

import logging
from collections.abc import Iterable

import onnx_ir as ir

from passes.graph.affine import batch_norm_affine
from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    drop_unused_initializers,
    is_op,
    replace_with,
    sole_consumer,
)
from passes.quantize.points import is_within_function
from passes.target.target import Target

logger = logging.getLogger(__name__)


class BatchNormToConv(ir.passes.InPlacePass):
    """Rewrites BatchNormalization over (N, C, spatial...) as a Conv with one tap per channel.

    Integer kernels exist for that, while those of BatchNormalization are rare. Run it behind FoldBatchNorm. Nodes and
    values keep their names; weight and bias are `<node>.weight` (C, 1, ...) and `<node>.bias`, computed in float64.
    A node stays that normalizes by the batch, has parameters that the graph computes, or an unknown number of axes, or
    that none of `targets` wants as a Conv (`Target.batch_norm`).
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        self.targets = tuple(targets)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names, count = FreshNames(model.graph), 0
        for node in list(model.graph):
            if is_op(node, "BatchNormalization") and any(_is_wanted(node, target) for target in self.targets):
                count += _rewrite(node, names)
        drop_unused_initializers(model.graph)
        return ir.passes.PassResult(model, modified=bool(count))


def _is_wanted(node: ir.Node, target: Target) -> bool:
    if target.batch_norm != "convolution unless summed":
        return target.batch_norm == "convolution"
    data = node.inputs[0]
    if data is not None and is_within_function(data, target):
        return False
    return not is_op(sole_consumer(node.outputs[0]), "Add")


def _rewrite(node: ir.Node, names: FreshNames) -> bool:
    data, gamma, affine = node.inputs[0], constant_value(node.inputs[1]), batch_norm_affine(node)
    if data is None or data.shape is None or len(data.shape) < 3 or gamma is None or affine is None:
        return False
    spatial = len(data.shape) - 2
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    weight = affine.scale.reshape(-1, *(1,) * (spatial + 1)).astype(gamma.dtype)
    inputs = [
        data,
        add_initializer(graph, names(f"{node.name}.weight"), weight),
        add_initializer(graph, names(f"{node.name}.bias"), affine.shift.astype(gamma.dtype)),
    ]
    ones, zeros = (1,) * spatial, (0, 0) * spatial
    conv = ir.node(
        "Conv",
        inputs,
        {"group": len(weight), "kernel_shape": ones, "strides": ones, "dilations": ones, "pads": zeros},
        name=node.name,
    )
    replace_with(node, conv)
    logger.debug("BatchNormalization %s becomes a Conv of one tap", node.name)
    return True
