"""DFQ's rewriting of the float graph before quantization (arXiv 1906.04721); it changes rare values only."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.methods.dfq.align import aligning_scales
from passes.dfq.absorb_bias import AbsorbHighBias, high_biases
from passes.dfq.equalize import EqualizeChannels, equalizing_scales
from passes.dfq.lift_clips import LiftClips, clipped_shares
from passes.graph.operators import LAYERS
from passes.moments.moments import Moments, moments_after_edit

NEGLIGIBLE = 1e-4  # greatest share of a channel's values that a ReLU6 may clip and still become a ReLU


@dataclass(frozen=True, kw_only=True)
class Equalization:
    """What `equalize` did, and the moments of the graph after it.

    moments: by value name.
    lifted_clips: names of the ReLU6 nodes that became Relu.
    equalized_layers: number of layers whose output channels were scaled.
    absorbed_biases: number of layers a part of whose bias the next layer took over.
    """

    moments: Mapping[str, Moments]
    lifted_clips: tuple[str, ...]
    equalized_layers: int
    absorbed_biases: int


def equalize(model: ir.Model, moments: Mapping[str, Moments], *, aligned_bits: int | None) -> Equalization:
    """Equalizes ranges across layers, in place.

    1. A ReLU6 that clips a negligible share of its input becomes a Relu, for it does not commute with channel scales.
    2. Ranges of weights are equalized across layers (section 4.1 of the paper).
    3. High biases are absorbed into the next layer (section 4.1.3).
    4. With `aligned_bits`, the equalized channels are aligned to powers of two: equalization alone leaves the best
       scales anywhere between two of these, which at 4 bits can cost more than it gains (a MobileNet: 8 points).

    Args:
        model: Float, BatchNormalization folded.
        moments: By value name, as `batch_norm_moments` reads them before folding. Where empty, 1 and 3 do nothing.
        aligned_bits: Width of the weights where their scales are powers of two, per output channel; else None.
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
        moments=moments,
        lifted_clips=lifted,
        equalized_layers=len(outputs & scales.keys()),
        absorbed_biases=len(outputs & amounts.keys()),
    )
