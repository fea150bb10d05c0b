"""Scales that are shifts: what AMD's NPU compiler allows of them. (Vitis AI, vai_q_onnx/refine.py.)

A scale of 2**-p has position p. The hardware shifts from one position to another, and every shift has limits. Where a
plan breaks one, a position is lowered, that is, a grid made coarser: nothing is then clipped that was not before. The
compiler's own tool also raises positions; here only lowering is used, so the order of the nodes does not matter.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdfq.errors import InputError
from passes.graph.operators import LAYERS
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import Fusion
from passes.target.target import Target

GREATEST_CUT = 16  # 0 <= shift_cut = weight + input - output <= 16
# shift_bias = weight + input - bias <= 15. The compiler allows it below 0 too, but before a LeakyRelu; the hardware
# then rounds the bias to the scale of its sums. Here it is never below 0, so that the file computes what that computes.
GREATEST_BIAS_SHIFT = 15
GREATEST_READ = 7  # shift_read = greatest - least input of an Add
WRITE_OF_ADD = (-7, 25)  # shift_write = least input - output
WRITE_OF_MUL = (0, 32)  # shift_write = sum of the inputs - output
WRITE_OF_SWISH = (0, 15)
ALIGNED = frozenset({"AveragePool", "Concat", "GlobalAveragePool"})  # output and inputs at one position
ROUNDS = 200


def within_shift_limits(model: ir.Model, plan: QuantPlan, target: Target) -> QuantPlan:
    """The plan with scales raised, by powers of two, until every shift is within its limits.

    Args:
        model: The float graph that the plan is for.
        plan: All its grids are per tensor and power-of-two.
        target: Tells which activations are computed together with their producer.

    Returns:
        Of grids that stay as they are, the same objects.

    Raises:
        InputError: The limits contradict each other; names a node.
    """
    positions = _Positions(model, plan, target)
    for _ in range(ROUNDS):
        last = positions.lower_all(model)
        if last is None:
            return positions.written(plan)
    raise InputError(
        f"No scales are within the shifts that {target.title} allows at {last!r}; "
        "its inputs differ too much in size: leave that part to another target."
    )


class _Positions:
    """The positions of all grids of a plan, by kind and name: names of different kinds may be the same."""

    def __init__(self, model: ir.Model, plan: QuantPlan, target: Target) -> None:
        self._plan, self._fusion = plan, Fusion(target)
        self._of = {
            (kind, name): position(quant) for kind, quants in _kinds(plan).items() for name, quant in quants.items()
        }
        self._lowered = False

    def lower_all(self, model: ir.Model) -> str | None:
        """One round over the graph; the last node that asked for a lower position, None when none did."""
        last = None
        for node in model.graph:
            self._lowered = False
            inputs = [key for value in node.inputs if (key := self._key(value)) is not None]
            output = self._key(node.outputs[0])
            if output is not None and inputs:
                self._lower_at(node, inputs, output)
            if self._lowered:
                last = node.name
        return last

    def _lower_at(self, node: ir.Node, inputs: list[tuple[str, str]], output: tuple[str, str]) -> None:
        of, floats = self._of, len([value for value in node.inputs if value is not None])
        if node.op_type in ALIGNED:
            least = min(of[key] for key in (*inputs, output))
            self._lower(least, *inputs, output)
        elif node.op_type in ("Add", "Sub") and len(inputs) == floats:
            least = min(of[key] for key in inputs)
            self._lower(least + GREATEST_READ, *inputs)
            self._lower(least - WRITE_OF_ADD[0], output)
            self._lower(of[output] + WRITE_OF_ADD[1], *inputs)
        elif node.op_type == "Mul" and len(inputs) == floats:
            gate = any(value is not None and _made_by(value, "HardSigmoid", "Sigmoid") for value in node.inputs)
            low, high = WRITE_OF_SWISH if gate else WRITE_OF_MUL
            total = sum(of[key] for key in inputs)
            self._lower(total - low, output)
            greatest = max(inputs, key=lambda key: of[key])
            self._lower(of[greatest] - max(total - of[output] - high, 0), greatest)
        elif node.op_type in LAYERS and len(node.inputs) > 1 and node.inputs[1] is not None:
            self._lower_at_layer(node, inputs[0], output)

    def _lower_at_layer(self, node: ir.Node, source: tuple[str, str], output: tuple[str, str]) -> None:
        of, weight, bias = self._of, ("weight", node.inputs[1].name or ""), ("bias", node.name or "")  # type: ignore[union-attr]
        if weight not in of:
            return
        self._lower(of[source] + of[weight], output)
        self._lower(GREATEST_CUT + of[output] - of[source], weight)
        if bias in of:
            self._lower(of[source] + of[weight], bias)
            self._lower(GREATEST_BIAS_SHIFT + of[bias] - of[source], weight)

    def _lower(self, position: int, *keys: tuple[str, str]) -> None:
        for key in keys:
            if self._of[key] > position:
                self._of[key], self._lowered = position, True

    def _key(self, value: ir.Value | None) -> tuple[str, str] | None:
        """Where the quantization of `value` is kept, None where it has none."""
        if value is None:
            return None
        if self._fusion.is_fused(value):  # quantized behind the activation function
            (use,) = value.uses()
            return self._key(use.node.outputs[0])
        name = value.name or ""
        if name in self._plan.constants:
            return "constant", name
        name = self._plan.same_as.get(name, name)
        return ("activation", name) if name in self._plan.activations else None

    def written(self, plan: QuantPlan) -> QuantPlan:
        """`plan` at these positions; what did not change is the same object as before."""
        changed = {
            kind: {name: _at(quant, self._of[kind, name]) for name, quant in quants.items()}
            for kind, quants in _kinds(plan).items()
        }
        return replace(
            plan,
            activations=changed["activation"],
            weights=changed["weight"],
            constants=changed["constant"],
            bias_quants=changed["bias"],
        )


def position(quant: TensorQuant) -> int:
    """p of a grid with the scale 2**-p."""
    return 1 - int(np.frexp(float(quant.scale))[1])


def _at(quant: TensorQuant, wanted: int) -> TensorQuant:
    excess = position(quant) - wanted
    return quant.widened(excess) if excess else quant


def _kinds(plan: QuantPlan) -> dict[str, Mapping[str, TensorQuant]]:
    return {
        "activation": plan.activations,
        "weight": plan.weights,
        "constant": plan.constants,
        "bias": plan.bias_quants,
    }


def _made_by(value: ir.Value, *op_types: str) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in op_types
