"""`WriteForTarget`: a float graph and a QuantPlan become a file that a target reads."""

import logging

import onnx_ir as ir

from passes.quantize.plan import QuantPlan
from passes.target.target import Target
from passes.write.fix_batch import FixBatch
from passes.write.insert_qdq import InsertQdq
from passes.write.qoperator import ToQOperator
from passes.write.set_opset import SetOpset
from passes.write.shift_negative import ShiftNegative

logger = logging.getLogger(__name__)

# The opset in which Quantize/Dequantize first took each type.
FIRST_OPSET = {"int8": 13, "int4": 21, "int2": 25}
FIRST_OPSET_OF_16_BITS = 21


class WriteForTarget(ir.passes.InPlacePass):
    """All edits that the plan and the target ask for, in order:

    1. The opset that the target reads and the containers need.
    2. A fixed batch, where the target takes no free sizes.
    3. Shifts to grids without sign, then Quantize/Dequantize.
    4. QLinear operators, where the target reads these.
    """

    def __init__(self, plan: QuantPlan, target: Target) -> None:
        self.plan = plan
        self.target = target

    def requires(self, model: ir.Model) -> None:
        """The opset has to have a form for every node; see `SetOpset`."""
        SetOpset(written_opset(model, self.plan, self.target)).requires(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        logger.debug("the model is written for %s", self.target.name)
        SetOpset(written_opset(model, self.plan, self.target))(model)
        if self.target.static_shapes:
            FixBatch()(model)
        ShiftNegative(self.plan.shifts)(model)
        InsertQdq(self.plan, self.target)(model)
        if self.target.format == "qoperator":
            ToQOperator()(model)
        return ir.passes.PassResult(model, modified=True)


def written_opset(model: ir.Model, plan: QuantPlan, target: Target) -> int:
    """The model's own opset, or the nearest that the target reads and the plan's containers allow."""
    needed = [FIRST_OPSET[target.weight_container(quant.bits)] for quant in plan.weights.values()]
    needed += [FIRST_OPSET_OF_16_BITS for quant in plan.activations.values() if quant.bits > 8]
    return min(max([model.opset_imports[""], *needed]), target.opset)
