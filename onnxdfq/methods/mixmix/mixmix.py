"""MixMix (arXiv 2011.09899): images that several networks know; its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from onnxdfq.limits import Bounds
from onnxdfq.methods.method import Need
from onnxdfq.methods.mixmix.deep_inversion import DeepInversion, Mixing

if TYPE_CHECKING:
    import onnx_ir as ir

    from passes.graph.work import Work


@dataclass(frozen=True, kw_only=True)
class Mixmix(DeepInversion):
    """As DeepInversion, with several models of a zoo (--zoo) looking at each batch, and images mixed with one another:
    what several networks know in whole and in part serves others, too.

    models: m', that are drawn for each batch. mix: whether a second image hides a box of each, another box at each
    step. balance: whether the weights of the losses are learned. The others are DeepInversion's.
    Raises InputError.

    Ours, where the paper is silent: how weights are learned, the centre of boxes, partners by a random order of the
    batch, and half the resolution for the first two fifths of the steps.
    """

    name: ClassVar[str] = "mixmix"
    summary: ClassVar[str] = "images that several models know (--zoo), mixed with one another; one set for many models"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLASSES})
    efforts: ClassVar[Mapping[str, Mapping[str, Any]]] = {"standard": {"steps": 1000}, "paper": {"steps": 5000}}

    models: Annotated[int, Bounds(least=1, most=64)] = 3
    mix: bool = True
    balance: bool = True

    def mixing(self) -> Mixing:
        """See DeepInversion."""
        return Mixing(models=self.models, data=self.mix, balance=self.balance)

    def work(self, model: ir.Model) -> Work:
        """As if each model of the zoo cost what this one does: what the others cost is not known before they are
        loaded."""
        own = super().work(model)
        return replace(own, macs=self.models * own.macs, numbers=self.models * own.numbers)
