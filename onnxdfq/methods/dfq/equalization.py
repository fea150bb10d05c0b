"""The float graph made easier to quantize, its function kept: what DFQ (arXiv 1906.04721) does before it rounds."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.methods.dfq.align import aligning_scales
from passes.dfq.absorb_bias import AbsorbHighBias, high_biases
from passes.dfq.equalize import EqualizeChannels, equalizing_scales
from passes.dfq.lift_clips import LiftClips, clipped_shares
from passes.graph.operators import LAYERS
from passes.moments.moments import Moments, moments_after_edit

NEGLIGIBLE = 1e-4  # of the numbers of the worst channel: more of them cut off, and a ReLU6 keeps its bound


@dataclass(frozen=True, kw_only=True)
class Equalization:
    """What was done, and what is known of the graph after it.

    moments: by value name. lifted: names of the ReLU6 that became Relu. scaled, absorbed: of how many layers the output
    channels were equalized, and how many gave up a part of their bias.
    """

    moments: Mapping[str, Moments]
    lifted: tuple[str, ...]
    scaled: int
    absorbed: int


def equalize(model: ir.Model, moments: Mapping[str, Moments], *, aligned_bits: int | None) -> Equalization:
    """Edits a float graph with BatchNormalization folded in place.

    moments: what `batch_norm_moments` read before folding; without it no bias is absorbed and no ReLU6 lifted.
    aligned_bits: width of the weights where their scales are powers of two, per output channel; None elsewhere.
    First ReLU6 that cut next to nothing become Relu; then the ranges of weights are equalized, high biases absorbed,
    and, of what was equalized, the channels aligned to powers of two: equalization alone moves the best scales between
    them, which at 4 bits can cost more than it brings (a MobileNet: 8 points).
    """
    lifted = tuple(name for name, share in clipped_shares(model, moments).items() if share <= NEGLIGIBLE)
    LiftClips(lifted)(model)
    scales = equalizing_scales(model)
    EqualizeChannels(scales)(model)
    moments = moments_after_edit(moments, scales, Moments.scaled)
    amounts = high_biases(model, moments)
    AbsorbHighBias(amounts)(model)
    moments = moments_after_edit(moments, amounts, Moments.lowered)
    if aligned_bits is not None:
        aligning = aligning_scales(model, aligned_bits)
        EqualizeChannels(aligning)(model)
        moments = moments_after_edit(moments, aligning, Moments.scaled)
    outputs = {node.outputs[0].name for node in model.graph if node.op_type in LAYERS}
    return Equalization(
        moments=moments, lifted=lifted, scaled=len(outputs & scales.keys()), absorbed=len(outputs & amounts.keys())
    )
