"""`OperatorRule`: how a target computes an operator. Filled in from `[operators.*]` of `onnxdfq/targets/*.toml`."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["integer", "float", "refused"]


@dataclass(frozen=True, kw_only=True)
class OperatorRule:
    """The form that an operator must have to be computed on integers. An operator without a rule is computed in float.

    verdict: "judged" by the fields below, or one verdict for every form, with `reason` and `advice` for the user.
    containers: element types of the data inputs that an integer kernel takes, one combination an entry: "uint8 int8"
        (input, weight), or "uint8 int8|uint8" for two at once. The last entry stands for all inputs that follow, so
        "uint8" suits a Concat of any width. "float" is a constant that the runtime quantizes itself.
    refused: combinations with which the runtime does not load the file, or fails when it runs, if nothing else keeps
        the node in float.
    output: whether a QuantizeLinear has to follow.
    same_type: it has to have the element type of the first input; same_parameters: also its scale and zero point.
    fuses: activation functions that the runtime merges into the operator; fuses_when: "redundant", if the range of the
        QuantizeLinear behind saturates likewise, or "always".
    bias: the forms of the third input: "none", "float" (a constant), "int32" and "int8" (behind a DequantizeLinear).
    adds_pairs: element types of the first input with which the kernels of some processors add two neighbouring products
        within the target's `pair_limit`.
    checks: further conditions, by their names in `passes/lint/checks.py`.
    carries: the runtime moves a DequantizeLinear before the operator behind it, so that it counts there too.
    pulls: the runtime moves a QuantizeLinear behind the operator before it, so that it counts there too.
    trips_over_filled: the runtime computes other numbers where an input is filled to the size of an open batch, as the
        class token of a vision transformer is.
    vanishes: the runtime removes the activation function where the QuantizeLinear behind it saturates likewise;
        `refused` are then the element types of that QuantizeLinear with which it fails to.
    with_add: for MatMul: the operator that it becomes together with an Add of a constant row right behind it.
    oldest_opset: the first in which the operator is computed on integers.

    The rule named "*" is for the whole file. There `refused` lists the element types that no QuantizeLinear or
    DequantizeLinear may have; newest_opset is the last that loads; becomes, "int8 uint8", is the change of type the
    runtime makes to a QuantizeLinear and DequantizeLinear that one node reads; becomes_breaks_from is the opset from
    which on that fails where the runtime moved the pair itself; bodies: the rules were tried in bodies of If, Loop and
    Scan, too, and hold there; own_constants: what the runtime changes by constants (becomes, a Relu that vanishes, a
    weight that it packs or quantizes itself), it changes in a body by the body's own alone, not by those of the graph
    around. The rule named "integer Clip" is for a Clip between QuantizeLinear and DequantizeLinear.
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
    trips_over_filled: bool = False
    vanishes: bool = False
    with_add: str = ""
    oldest_opset: int = 0
    newest_opset: int = 0
    becomes: str = ""
    becomes_breaks_from: int = 0
    bodies: bool = False
    own_constants: bool = False

    @property
    def takes_integers(self) -> bool:
        """Whether there is a form in which integers go in or out."""
        return self.verdict == "integer" or bool(self.containers) or self.carries or self.pulls or self.vanishes
