"""`RemoveChannels`: takes the channels of a plan out of a graph."""

import logging

import onnx_ir as ir

from passes.graph.editing import FreshNames, constant_value, set_constant_input
from passes.prune.plan import ChannelPlan

logger = logging.getLogger(__name__)


class RemoveChannels(ir.passes.InPlacePass):
    """Makes layers narrower.

    1. Constants of nodes (weights, biases, normalizations, slopes) keep the indices that the plan says.
    2. Numbers of channels that nodes hold (groups, shapes, pads, ranges) become the new ones.
    3. The shapes of values follow.

    Inputs and outputs of the graph stay as they are.
    """

    def __init__(self, plan: ChannelPlan) -> None:
        self.plan = plan

    def requires(self, model: ir.Model) -> None:
        """Every node that is named must be there."""
        named = {cut.node for cut in self.plan.cuts} | {count.node for count in self.plan.counts}
        if missing := sorted(named - {node.name for node in model.graph}):
            raise ir.passes.PreconditionError(f"the plan names what the graph lacks: {', '.join(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        nodes, names = {node.name: node for node in model.graph}, FreshNames(model.graph)
        for cut in self.plan.cuts:
            node = nodes[cut.node]
            array = constant_value(node.inputs[cut.slot])
            assert array is not None
            kept = array.take(cut.kept, cut.axis)
            set_constant_input(node, cut.slot, kept, names, f"{node.name}.pruned")
            logger.debug("%s input %d keeps %d of %d", node.name, cut.slot, len(cut.kept), array.shape[cut.axis])
        for count in self.plan.counts:
            node = nodes[count.node]
            if count.slot is None:
                node.attributes["group"] = ir.AttrInt64("group", count.value)
                continue
            array = constant_value(node.inputs[count.slot])
            assert array is not None
            changed = array.copy()
            changed.reshape(-1)[count.index] = count.value
            set_constant_input(node, count.slot, changed, names, f"{node.name}.sizes")
        for value in (value for node in model.graph for value in node.outputs):
            kept_channels = self.plan.values.get(value.name or "")
            if kept_channels is not None and value.shape is not None:
                sizes = list(value.shape)
                sizes[kept_channels.axis] = len(kept_channels.channels)
                value.shape = ir.Shape(sizes)
        return ir.passes.PassResult(model, modified=bool(self.plan.cuts))
