"""`ShiftNegative`: makes activations non-negative by a constant that the following layer's bias takes back (HPTQ)."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, add_initializer
from passes.quantize.plan import padded_name, shifted_name

logger = logging.getLogger(__name__)


class ShiftNegative(ir.passes.InPlacePass):
    """For each value → shift:

    1. The value plus its shift feeds the one layer that reads it; that layer's bias is the plan's business.
    2. A Conv that pads gets its border from a Pad with the shift as value: shifted, a zero is no zero any more.
    """

    def __init__(self, shifts: Mapping[str, float]) -> None:
        self.shifts = shifts

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph, fresh = model.graph, FreshNames(model.graph)
        values = {value.name: value for node in graph for value in node.outputs}
        for name, shift in self.shifts.items():
            value = values[name]
            (use,) = value.uses()
            constant = add_initializer(graph, fresh(f"{name}_shift"), np.asarray(shift, np.float32))
            add = ir.node("Add", [value, constant], name=fresh(f"{name}_shift_negative"))
            nodes, result = [add], add.outputs[0]
            result.name, result.type, result.shape = shifted_name(name), value.type, value.shape
            layer = use.node
            if any(pads := layer.attributes.get_ints("pads", ())):
                half = len(pads) // 2
                border = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
                padding = add_initializer(graph, fresh(f"{name}_border"), border)
                pad = ir.node("Pad", [result, padding, constant], name=fresh(f"{name}_pad"))
                result = pad.outputs[0]
                result.name, result.type = padded_name(name), value.type
                if value.shape is not None:
                    sizes = zip(value.shape, border[: half + 2], border[half + 2 :], strict=True)
                    result.shape = ir.Shape([s + int(a + b) if isinstance(s, int) else s for s, a, b in sizes])
                layer.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
                nodes.append(pad)
            graph.insert_before(layer, nodes)
            layer.replace_input_with(use.idx, result)
            logger.debug("%s is shifted by %g for %s", name, shift, layer.name)
        return ir.passes.PassResult(model, modified=bool(self.shifts))
