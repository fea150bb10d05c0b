"""Grids of single tensors, as a plan file pins them."""

from dataclasses import dataclass

import numpy as np

from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import ACTIVATION_BITS, FLOAT_BITS, WEIGHT_BITS
from passes.quantize.plan import TensorQuant

BITS = {*WEIGHT_BITS, *ACTIVATION_BITS} - {FLOAT_BITS}


@dataclass(frozen=True, kw_only=True)
class TensorPin:
    """The grid of one tensor.

    threshold: one number, or one for each output channel of a weight; in the tensor's own unit. bits: None leaves them
    to what holds for all. zero_point: how many steps a grid without sign begins below zero.
    """

    threshold: tuple[float, ...]
    bits: int | None
    signed: bool
    zero_point: int = 0

    @classmethod
    def of(cls, quant: TensorQuant) -> "TensorPin":
        """Of a tensor that a plan quantizes."""
        threshold = tuple(map(float, np.ravel(quant.threshold)))
        return cls(threshold=threshold, bits=quant.bits, signed=quant.signed, zero_point=quant.zero_point)

    def checked(self, name: str, where: str) -> "TensorPin":
        """Itself. Raises InputError where it is no grid."""
        ends = np.asarray(self.threshold)
        if not ends.size or not np.isfinite(ends).all() or not (ends > 0).all():
            raise InputError(f"The threshold of {name!r} in {where} is no number above 0.")
        if self.bits is not None and self.bits not in BITS:
            raise InputError(f"{name!r} in {where} has {self.bits} bits; tensors take 2 to 8, or 16.")
        most = 2 ** (self.bits or max(BITS))
        if self.zero_point and (self.signed or self.zero_point % 2 or not 0 < self.zero_point < most):
            raise InputError(
                f"The zero point of {name!r} in {where} is {self.zero_point}: it is the number of steps below zero, "
                "even, less than the grid has, and 0 where the grid has a sign."
            )
        return self

    def quant(self, bits: int, axis: int | None) -> TensorQuant:
        """As a plan has it. bits: where the pin says none. axis: of the output channels, for several thresholds."""
        one = len(self.threshold) == 1
        return TensorQuant(
            bits=self.bits or bits,
            signed=self.signed,
            threshold=np.asarray(self.threshold[0] if one else self.threshold, np.float64),
            axis=None if one else axis,
            zero_point=self.zero_point,
        )
