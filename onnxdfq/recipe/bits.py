"""Bits: of a whole network, and of single layers, as a plan file pins them or a search under a budget decides them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.recipe.names import one_of
from passes.quantize.plan import QuantPlan
from passes.quantize.points import QuantPoints, data_input

WEIGHT_BITS = range(2, 9)
FLOAT_BITS = 32
ACTIVATION_BITS = (*range(2, 9), 16, FLOAT_BITS)


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Bits of weights and activations: weight 2…8, activation 2…8, 16, or 32 for float.

    low: of every other layer's weights, which the ones behind it pay for (DF-MPC); None: all layers have `weight`.
    """

    weight: int
    activation: int
    low: int | None = None

    def __post_init__(self) -> None:
        widths = {self.weight, self.weight if self.low is None else self.low}
        if not widths <= set(WEIGHT_BITS) or self.activation not in ACTIVATION_BITS:
            raise InputError(
                f"{self} is not possible: weights take 2 to 8 bits, activations 2 to 8, 16, or 32 for float."
            )

    @classmethod
    def parse(cls, text: str) -> "Bits":
        """`Bits.parse("w4a8")`, `Bits.parse("w2/6")`, `Bits.parse("w2/6a8")`. Raises InputError for anything else."""
        match = re.fullmatch(r"w(?:([0-9]{1,3})/)?([0-9]{1,3})(?:a([0-9]{1,3}))?", text.strip().lower())
        if match is None or not (match[1] or match[3]):
            raise InputError(
                f"{text!r} is not of the form w4a8: weight bits 2 to 8, activation bits 2 to 8, 16 or 32; or "
                "w2/6, low and high weight bits, for a method that takes two widths.",
                field="bits",
            )
        return cls(weight=int(match[2]), activation=int(match[3] or 32), low=None if not match[1] else int(match[1]))

    def __str__(self) -> str:
        if self.low is None:
            return f"w{self.weight}a{self.activation}"
        return f"w{self.low}/{self.weight}" + ("" if self.activation == 32 else f"a{self.activation}")


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """Bits of one layer's weight and of the activation that it reads; None leaves them to what holds for all layers.

    Layers that read the same activation share its width.
    """

    weight: int | None = None
    activation: int | None = None

    @classmethod
    def parse(cls, text: str) -> "LayerBits":
        """`w4`, `a8` or `w4a8`. Raises InputError for anything else."""
        match = re.fullmatch(r"(?:w([0-9]{1,3}))?(?:a([0-9]{1,3}))?", text.strip().lower())
        if match is None or match[1] is match[2] is None:
            raise InputError(f"{text!r} are no bits of a layer: write w4, a8 or w4a8.")
        weight, activation = (None if number is None else int(number) for number in match.groups())
        if weight not in (None, *WEIGHT_BITS) or activation not in (None, *ACTIVATION_BITS[:-1]):
            raise InputError(f"{text!r} is not possible: weights take 2 to 8 bits, single activations 2 to 8 or 16.")
        return cls(weight=weight, activation=activation)

    def __str__(self) -> str:
        weight = "" if self.weight is None else f"w{self.weight}"
        return weight if self.activation is None else f"{weight}a{self.activation}"


def check_layers(bits: Mapping[str, LayerBits], points: QuantPoints) -> None:
    """Raises InputError, with the nearest name, where a name is not that of a layer with a weight."""
    names = [use.node for use in points.weights]
    for name in bits:
        one_of("layer", name, names)


def bits_of_plan(model: ir.Model, plan: QuantPlan, points: QuantPoints) -> dict[str, LayerBits]:
    """What each layer of the float graph got, in graph order."""
    nodes = {node.name: node for node in model.graph}
    found = {}
    for use in points.weights:
        source = data_input(nodes[use.node], use)
        quant = plan.read_quant(source)
        found[use.node] = LayerBits(
            weight=plan.weights[use.initializer].bits, activation=None if quant is None else quant.bits
        )
    return found
