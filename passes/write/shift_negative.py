"""`ShiftNegative`: activations that are non-negative up to a constant, which the next layer's bias undoes (HPTQ)."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, add_initializer
from passes.quantize.plan import padded_name, shifted_name

logger = logging.getLogger(__name__)


class ShiftNegative(ir.passes.InPlacePass):
    """Adds a constant to values, so that a grid without sign holds them (HPTQ, arXiv 2109.09113).

    shifts: value name → the constant, in the value's unit.

    1. The one layer that reads the value reads value + shift. Its bias has to undo this, which is left to the plan.
    2. A Conv that pads gets a Pad before it that pads with the shift: with it a zero is no zero any more.
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
