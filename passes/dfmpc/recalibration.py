"""What a quantized weight does to mean and deviation of its layer's output, and DF-MPC's coefficients for it."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import onnx_ir as ir

from passes.dfmpc.correlation import Field
from passes.dfmpc.layer_pairs import input_count
from passes.dfmpc.low_bit import LowBit, Single, aware_of_covariance, aware_of_neighbours, row_parts
from passes.dfmpc.noise_probe import Covariance
from passes.graph.affine import Array
from passes.graph.editing import is_op

SWEEPS = 6  # of the rounding over the inputs; most layers change no more after three

DEAD = 1e-10  # of the greatest variance of a layer's outputs
# Covariances between positions are estimates: so much of them is believed.
BELIEVED = 0.9


class Inputs(Protocol):
    """What is known of what the rows (O, D) of a weight see; D runs over I/g channels of the group and K taps."""

    def response(self, rows: Single) -> Array:
        """(O,) mean of what the rows give."""

    def energy(self, rows: Single) -> Array:
        """(O,) variance of what the rows give."""

    def rounded(self, rows: Single, start: LowBit, bits: int) -> LowBit:
        """Integers that lower the variance of the error against those of `start`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """Channels that have nothing in common. means: (g, I/g). blocks: (g, I/g, K, K) covariance of the taps of each.

    share: of the taps, how many an output position sees: all, or for ConvTranspose 1 / prod(strides) of them.
    """

    means: Array
    blocks: Single
    share: float = 1.0

    def response(self, rows: Single) -> Array:
        """(O,) mean of what the rows give; borders are neglected. (DFQ, arXiv 1906.04721, Eq. 17)"""
        group, channels, taps, _ = self.blocks.shape
        summed = rows.reshape(group, -1, channels, taps).sum(axis=3, dtype=np.float64)
        return np.asarray(np.einsum("goi,gi->go", summed, self.means).reshape(-1) * self.share)

    def energy(self, rows: Single) -> Array:
        """(O,)"""
        group, channels, taps, _ = self.blocks.shape
        if group == taps == 1:
            return np.asarray(np.square(rows) @ self.blocks.reshape(-1), np.float64)
        parts = row_parts(rows) if group == 1 else (rows,)
        energies = []
        for part in parts:
            split = part.reshape(group, -1, channels, taps).swapaxes(1, 2)  # (g, I/g, O/g, K)
            energies.append(np.einsum("giok,giok->go", split @ self.blocks, split).reshape(-1))
        return np.concatenate(energies).astype(np.float64)

    def rounded(self, rows: Single, start: LowBit, bits: int) -> LowBit:
        """As `aware_of_neighbours`."""
        return aware_of_neighbours(rows, start, self.blocks, bits, SWEEPS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Covariant:
    """Everything together, as a probe showed it."""

    shown: Covariance

    def response(self, rows: Single) -> Array:
        """(O,) mean of what the rows give, borders as the probe had them."""
        split = rows.reshape(len(self.shown.mean), -1, rows.shape[1]).astype(np.float64)
        return np.asarray(np.einsum("god,gd->go", split, self.shown.mean).reshape(-1))

    def energy(self, rows: Single) -> Array:
        """(O,)"""
        split = rows.reshape(len(self.shown.mean), -1, rows.shape[1])
        return np.asarray(np.einsum("god,god->go", split @ self.shown.matrix, split).reshape(-1), np.float64)

    def rounded(self, rows: Single, start: LowBit, bits: int) -> LowBit:
        """As `aware_of_covariance`."""
        return aware_of_covariance(rows, start, self.shown.matrix, bits, SWEEPS)


def inputs_of(node: ir.Node, shape: tuple[int, ...], seen: Field) -> Inputs | None:
    """shape: of the layer's weight. None where the field does not fit the layer."""
    mean, variance = seen.moments.mean, np.square(seen.moments.std).astype(np.float32)
    if is_op(node, "Conv", "ConvTranspose"):
        group = node.attributes.get_int("group", 1)
        channels, kernel = (shape[1] * group if is_op(node, "Conv") else shape[0]), shape[2:]
        if len(mean) != channels:
            return None
        taps, share = prod(kernel), 1.0
        if is_op(node, "Conv") and len(kernel) <= 2:
            blocks = seen.blocks(kernel, tuple(node.attributes.get_ints("dilations", (1,) * len(kernel))))
            blocks[:, ~np.eye(taps, dtype=bool)] *= np.float32(BELIEVED)
        else:
            blocks = variance[:, None, None] * np.eye(taps, dtype=np.float32)
        if is_op(node, "ConvTranspose"):
            share = 1 / prod(node.attributes.get_ints("strides", (1,)))
        return Neighbours(means=mean.reshape(group, -1), blocks=blocks.reshape(group, -1, taps, taps), share=share)
    features = input_count(node)
    if features % len(mean):
        return None
    run = features // len(mean)
    return Neighbours(means=np.repeat(mean, run)[None], blocks=np.repeat(variance, run).reshape(1, -1, 1, 1))


def deviation_ratio(rows: Single, new: Single, inputs: Inputs | None) -> Array:
    """(O,) standard deviation of each output after to before; without `inputs` as if all of them varied alike.

    1 for a filter that became all zero, or that sees next to nothing that varies.
    """
    if inputs is None:
        before, after = (np.square(part).sum(axis=1, dtype=np.float64) for part in (rows, new))
    else:
        before, after = inputs.energy(rows), inputs.energy(new)
    alive = (before > DEAD * before.max(initial=0)) & (after > 0)
    return np.asarray(np.sqrt(np.divide(after, before, out=np.ones_like(after), where=alive)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalized:
    """A layer and the batch normalization behind it. rows: (O, D), the others (O,); deviation with its epsilon."""

    rows: Single
    scale: Array
    bias: Array
    mean: Array
    deviation: Array

    @property
    def slopes(self) -> Array:
        """(O, D) the linear map from the layer's input to the normalized output."""
        return self.rows * (self.scale / self.deviation)[:, None]

    @property
    def offsets(self) -> Array:
        """(O,) what it adds."""
        return self.bias - self.scale * self.mean / self.deviation


def coefficients(old: Normalized, new: Normalized, *, lambda1: float, lambda2: float) -> Array:
    """(O,) c of DF-MPC's Eq. (27), channel by channel, not below 0; of a channel that is dead, 1.

    It minimises |Gamma|**2 + lambda1 Theta**2 + lambda2 c**2, Gamma = c new.slopes - old.slopes, Theta likewise of the
    offsets: the error that c times the quantized channel still has behind ReLU.
    """
    p, q, after, before = new.slopes, old.slopes, new.offsets, old.offsets
    above = np.einsum("od,od->o", p, q) + lambda1 * after * before
    below = np.einsum("od,od->o", p, p) + lambda1 * np.square(after) + lambda2
    return np.asarray(np.maximum(np.divide(above, below, out=np.ones_like(above), where=below > 0), 0.0))
