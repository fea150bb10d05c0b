"""How a quantized weight changes mean and deviation of its layer's output, and DF-MPC's coefficients against that."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float32, Float64

from passes.dfmpc.correlation import Field
from passes.dfmpc.layer_pairs import input_count
from passes.dfmpc.low_bit import Floats, LowBit, Single, round_by_joint_covariance, round_by_tap_covariance, row_chunks
from passes.dfmpc.noise_probe import Covariance
from passes.graph.affine import Array
from passes.graph.editing import is_op

SWEEPS = 6  # of coordinate descent over the weights of a layer; most layers have converged after three
LEAST_SHARE_OF_VARIANCE = 1e-10  # of the greatest variance of a layer's outputs; below it a channel is dead
TRUST_IN_COVARIANCE = 0.9  # factor for covariances between positions, which are estimates


class InputStatistics(Protocol):
    """Mean and covariance of the inputs of a layer. Rows (O, D) of a weight: D runs over I/g channels and K taps."""

    def output_mean(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) mean of the layer's output with these rows as its weight, without bias."""

    def output_variance(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) variance of the layer's output with these rows as its weight."""

    def rounded(self, rows: Float32[Single, "o d"], start: LowBit, bits: int) -> LowBit:
        """Integers of `bits` bits for `rows` with a lower variance of the output's error than those of `start`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class IndependentChannels:
    """Inputs whose channels are independent of each other, as batch normalization alone tells them.

    means: (g, I/g). blocks: (g, I/g, K, K) covariance of the K taps of each channel.
    share: of the taps that contribute to an output position: 1, or for ConvTranspose 1 / prod(strides).
    """

    means: Float64[Array, "g i"]
    blocks: Float32[Single, "g i k k"]
    share: float = 1.0

    def output_mean(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) mean of the output; borders are neglected. (DFQ, arXiv 1906.04721, Eq. 17)"""
        group, channels, taps, _ = self.blocks.shape
        summed = rows.reshape(group, -1, channels, taps).sum(axis=3, dtype=np.float64)
        return np.asarray(np.einsum("goi,gi->go", summed, self.means).reshape(-1) * self.share)

    def output_variance(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) variance of the output."""
        group, channels, taps, _ = self.blocks.shape
        if group == taps == 1:
            return np.asarray(np.square(rows) @ self.blocks.reshape(-1), np.float64)
        parts = row_chunks(rows) if group == 1 else (rows,)
        variances = []
        for part in parts:
            split = part.reshape(group, -1, channels, taps).swapaxes(1, 2)  # (g, I/g, O/g, K)
            variances.append(np.einsum("giok,giok->go", split @ self.blocks, split).reshape(-1))
        return np.concatenate(variances).astype(np.float64)

    def rounded(self, rows: Float32[Single, "o d"], start: LowBit, bits: int) -> LowBit:
        """See `round_by_tap_covariance`."""
        return round_by_tap_covariance(rows, start, self.blocks, bits, SWEEPS)


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrelatedChannels:
    """Inputs with a covariance of all channels and taps, as measured on images or noise (`noise_probe`)."""

    covariance: Covariance

    def output_mean(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) mean of the output, borders included."""
        split = rows.reshape(len(self.covariance.mean), -1, rows.shape[1]).astype(np.float64)
        return np.asarray(np.einsum("god,gd->go", split, self.covariance.mean).reshape(-1))

    def output_variance(self, rows: Float32[Single, "o d"]) -> Float64[Array, "o"]:
        """(O,) variance of the output."""
        split = rows.reshape(len(self.covariance.mean), -1, rows.shape[1])
        return np.asarray(np.einsum("god,god->go", split @ self.covariance.matrix, split).reshape(-1), np.float64)

    def rounded(self, rows: Float32[Single, "o d"], start: LowBit, bits: int) -> LowBit:
        """See `round_by_joint_covariance`."""
        return round_by_joint_covariance(rows, start, self.covariance.matrix, bits, SWEEPS)


def input_statistics(node: ir.Node, shape: tuple[int, ...], field: Field) -> InputStatistics | None:
    """The statistics of the input of a layer with a weight of this shape; None where `field` has other channels."""
    mean, variance = field.moments.mean, np.square(field.moments.std).astype(np.float32)
    if is_op(node, "Conv", "ConvTranspose"):
        group = node.attributes.get_int("group", 1)
        channels, kernel = (shape[1] * group if is_op(node, "Conv") else shape[0]), shape[2:]
        if len(mean) != channels:
            return None
        taps, share = prod(kernel), 1.0
        if is_op(node, "Conv") and len(kernel) <= 2:
            blocks = field.blocks(kernel, tuple(node.attributes.get_ints("dilations", (1,) * len(kernel))))
            blocks[:, ~np.eye(taps, dtype=bool)] *= np.float32(TRUST_IN_COVARIANCE)
        else:
            blocks = variance[:, None, None] * np.eye(taps, dtype=np.float32)
        if is_op(node, "ConvTranspose"):
            share = 1 / prod(node.attributes.get_ints("strides", (1,)))
        return IndependentChannels(
            means=mean.reshape(group, -1), blocks=blocks.reshape(group, -1, taps, taps), share=share
        )
    features = input_count(node)
    if features % len(mean):
        return None
    run = features // len(mean)
    blocks = np.repeat(variance, run).reshape(1, -1, 1, 1)
    return IndependentChannels(means=np.repeat(mean, run)[None], blocks=blocks)


def deviation_ratio(
    rows: Float32[Single, "o d"], new: Float32[Single, "o d"], inputs: InputStatistics | None
) -> Float64[Array, "o"]:
    """(O,) standard deviation of each output channel with the rows `new` to that with `rows`, both (O, D).

    inputs: None stands for independent inputs of one variance: the ratio of the norms of the filters. The ratio is 1
    for a filter that became all zero, or whose output is constant.
    """
    if inputs is None:
        before, after = (np.square(part).sum(axis=1, dtype=np.float64) for part in (rows, new))
    else:
        before, after = inputs.output_variance(rows), inputs.output_variance(new)
    alive = (before > LEAST_SHARE_OF_VARIANCE * before.max(initial=0)) & (after > 0)
    return np.asarray(np.sqrt(np.divide(after, before, out=np.ones_like(after), where=alive)))


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalizedLayer:
    """A layer and the batch normalization behind it. rows: (O, D), the others (O,); deviation: sqrt(var + epsilon)."""

    rows: Float[Floats, "o d"]
    scale: Float64[Array, "o"]
    bias: Float64[Array, "o"]
    mean: Float64[Array, "o"]
    deviation: Float64[Array, "o"]

    @property
    def slopes(self) -> Float64[Array, "o d"]:
        """(O, D) the linear map from the layer's input to the normalized output."""
        return self.rows * (self.scale / self.deviation)[:, None]

    @property
    def offsets(self) -> Float64[Array, "o"]:
        """(O,) the constant term of that map."""
        return self.bias - self.scale * self.mean / self.deviation


def coefficients(old: NormalizedLayer, new: NormalizedLayer, *, lambda1: float, lambda2: float) -> Float64[Array, "o"]:
    """(O,) the coefficients c of Eq. (27) of DF-MPC (arXiv 2307.00498), at least 0; 1 for a dead channel.

    Args:
        old, new: the layer with its float weight and with the quantized one.
        lambda1, lambda2: weights of the error of the offsets, and of the size of c.

    Channel by channel c minimises |Gamma|**2 + lambda1 Theta**2 + lambda2 c**2, Gamma = c new.slopes - old.slopes, and
    Theta likewise of the offsets: the error behind a ReLU that c times the quantized channel still has.
    """
    p, q, after, before = new.slopes, old.slopes, new.offsets, old.offsets
    above = np.einsum("od,od->o", p, q) + lambda1 * after * before
    below = np.einsum("od,od->o", p, p) + lambda1 * np.square(after) + lambda2
    return np.asarray(np.maximum(np.divide(above, below, out=np.ones_like(above), where=below > 0), 0.0))
