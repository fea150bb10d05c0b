"""Means and deviations that pruning changes, made right in closed form: no image is looked at."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64
from numpy.typing import NDArray

from onnxdfq.pruning.shifts import norm_behind, shift_outputs
from passes.graph.affine import rounded_to
from passes.graph.channel_paths import layer_weight
from passes.graph.editing import FreshNames, constant_value, name_of, set_constant_input
from passes.moments.layers import layer_response
from passes.moments.moments import activation_moments
from passes.prune.plan import ChannelPlan, ZeroPlan

Vector = NDArray[np.float64]


LEAST_SHARE = 0.05  # of a variance that is believed to remain; below, channels are next to dead


@dataclass(frozen=True, kw_only=True, eq=False)
class LostMoments:
    """What pruning takes from the moments of each layer's output.

    means: layer → (C_out,) that its mean loses. shares: layer → (C_out,) of its variance that remains. unknown: layers
    that lose nobody knows how much: no BatchNormalization tells the moments of what they read.
    """

    means: dict[str, Float64[Vector, "_"]]
    shares: dict[str, Float64[Vector, "_"]]
    unknown: tuple[str, ...]


def lost_moments(model: ir.Model, plan: ChannelPlan | ZeroPlan) -> LostMoments:
    """What the weights that go contribute: to means sum W E[x], to variances sum W² V[x], over channels and taps.

    Args:
        model: canonical, its BatchNormalizations in place, before the plan is carried out. It is only read.
        plan: of channels, or of weights.

    Borders are neglected, as they are in `passes.moments`, and for variances the inputs are taken as independent.

    Source: E[x] from BatchNormalization, as for bias correction in DFQ, arXiv 1906.04721, Eq. 17 and appendix C.
    """
    moments = activation_moments(model)
    means: dict[str, Vector] = {}
    shares: dict[str, Vector] = {}
    unknown = []
    for node in model.graph:
        weight = layer_weight(node)
        if weight is None or (lost := _lost(node, weight, plan)) is None:
            continue
        known = moments.get(name_of(node.inputs[0]))
        if known is None:
            unknown.append(name_of(node))
            continue
        gone, goes = lost
        means[name_of(node)] = layer_response(node, gone, known.mean * goes)
        variance = np.square(known.std)
        whole = layer_response(node, np.square(weight), variance)
        part = layer_response(node, np.square(gone), variance * goes)
        ratio = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        shares[name_of(node)] = np.clip(1 - ratio, LEAST_SHARE, 1)
    return LostMoments(means=means, shares=shares, unknown=tuple(unknown))


def give_back(model: ir.Model, lost: LostMoments) -> None:
    """Makes BatchNormalizations and biases right, in place, before the plan is carried out.

    Where a BatchNormalization alone reads a layer, its running statistics become those of what the layer gives now, so
    that behind it mean and deviation are what they were. Else the bias gives the mean back.
    """
    names = FreshNames(model.graph)
    for node in model.graph:
        share, norm = lost.shares.get(name_of(node)), norm_behind(node)
        variance = None if norm is None or share is None else constant_value(norm.inputs[4])
        if norm is not None and share is not None and variance is not None:
            set_constant_input(norm, 4, rounded_to(variance.dtype, variance * share), names, f"{norm.name}.var")
    shift_outputs(model, lost.means)


def _lost(
    node: ir.Node, weight: Float64[Vector, "*shape"], plan: ChannelPlan | ZeroPlan
) -> tuple[Float64[Vector, "*shape"], Float64[Vector, "i"] | float] | None:
    """A weight of which the part that goes is left, and which of its input channels go (1) or stay (0); None where
    none goes."""
    if isinstance(plan, ZeroPlan):
        mask = plan.masks.get(name_of(node))
        return None if mask is None or mask.all() else (np.where(mask, 0.0, weight), 1.0)
    kept = plan.values.get(name_of(node.inputs[0]))
    if kept is None:
        return None
    goes = np.ones(kept.before)
    goes[kept.channels] = 0
    return weight, goes
