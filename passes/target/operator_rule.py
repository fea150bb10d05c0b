"""`OperatorRule`: how a target computes an operator. Filled in from `[operators.*]` of `onnxdfq/targets/*.toml`."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["integer", "float", "refused"]


@dataclass(frozen=True, kw_only=True)
class OperatorRule:
    """The form in which one operator is computed on integers. An operator without a rule is computed in float.

    verdict: "judged" by the fields below, or fixed whatever the form, with `reason` and `advice` to say why.
    containers: element types of the data inputs that an integer kernel takes, one combination an entry: "uint8 int8"
        (input, weight), or "uint8 int8|uint8" for two at once. The last entry stands for all inputs that follow, so
        "uint8" suits a Concat of any width. "float" is a constant that the runtime quantizes itself.
    refused: combinations with which the runtime does not load the file, or fails when it runs, once all else holds.
    output: whether a QuantizeLinear has to follow.
    same_type: it then has the element type of the first input; same_parameters: and its scale and zero point.
    fuses: activation functions that are computed along: when the range of a QuantizeLinear behind makes them
        `redundant`, or `always`.
    bias: the forms of the third input: "none", "float" (a constant), "int32" and "int8" (behind a DequantizeLinear).
    adds_pairs: element types of the first input with which the kernels of some processors add two neighbouring products
        within the target's `pair_limit`.
    checks: further conditions, by their names in `passes/lint/checks.py`.
    carries: a DequantizeLinear before the operator is moved behind it, so that it counts there too.
    pulls: a QuantizeLinear behind it is moved before it, so that it counts there too.
    vanishes: an activation function that the saturation of the QuantizeLinear behind it carries out; `refused` are then
        the element types of that QuantizeLinear which the runtime trips over.
    with_add: for MatMul: the operator that it becomes together with an Add of a constant row right behind it.
    oldest_opset: before it the operator is computed in float.

    The rule named "*" is for the whole file. There `refused` lists the element types that no Quantize or Dequantize may
    have; newest_opset is the last that loads; and becomes, "int8 uint8", says that a pair of Quantize and Dequantize
    that one node reads changes so; becomes_breaks_from is the opset from which on the runtime trips over that where it
    moved the pair itself. The rule named "integer Clip" is for a Clip between the two.
    """

    verdict: Literal["judged", "integer", "float", "refused"] = "judged"
    reason: str = ""
    advice: str = ""
    containers: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    output: Literal["required", "optional"] = "required"
    same_type: bool = False
    same_parameters: bool = False
    fuses: tuple[str, ...] = ()
    fuses_when: Literal["redundant", "always"] = "redundant"
    bias: tuple[str, ...] = ("none", "float", "int32", "int8")
    adds_pairs: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    carries: bool = False
    pulls: bool = False
    vanishes: bool = False
    with_add: str = ""
    oldest_opset: int = 0
    newest_opset: int = 0
    becomes: str = ""
    becomes_breaks_from: int = 0

    @property
    def takes_integers(self) -> bool:
        """Whether there is a form in which integers go in or out."""
        return self.verdict == "integer" or bool(self.containers) or self.carries or self.pulls or self.vanishes
