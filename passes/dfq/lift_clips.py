"""ReLU6 becomes Relu where its upper bound cuts next to nothing, so that equalization gets through."""

import logging
import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from passes.graph.editing import is_op, name_of, replace_with, scalar_value
from passes.moments.moments import Moments
from passes.moments.spread import erf

logger = logging.getLogger(__name__)


def clipped_shares(model: ir.Model, moments: Mapping[str, Moments]) -> dict[str, float]:
    """The share of numbers that the upper bound of each Clip to [0, b] is expected to cut, by node name.

    Args:
        model: with the Clips.
        moments: by value name, of their inputs.

    Returns:
        The share in the worst channel, each taken as normal; 1.0 where there are no moments of the input.
    """
    shares: dict[str, float] = {}
    for node in model.graph:
        if (bound := _upper_bound(node)) is None:
            continue
        before = moments.get(name_of(node.inputs[0]))
        if before is None:
            shares[name_of(node)] = 1.0
            continue
        distance = (bound - before.mean) / np.maximum(before.std, 1e-12)
        shares[name_of(node)] = float(np.max(0.5 * (1 - erf(distance * math.sqrt(0.5))), initial=0))
    return shares


class LiftClips(ir.passes.InPlacePass):
    """Clip to [0, b] becomes Relu, at the nodes that are named.

    DFQ (arXiv 1906.04721) replaces every ReLU6 so. The model then computes something else wherever the bound cut;
    `clipped_shares` says how often that is.
    """

    def __init__(self, nodes: Collection[str]) -> None:
        self.nodes = frozenset(nodes)

    def requires(self, model: ir.Model) -> None:
        clips = {node.name for node in model.graph if _upper_bound(node) is not None}
        if unknown := sorted(self.nodes - clips):
            raise ir.passes.PreconditionError(f"No Clip to [0, b] of the main graph is called {', '.join(unknown)}.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        for node in model.graph:
            if node.name in self.nodes:
                replace_with(node, ir.node("Relu", [node.inputs[0]], name=node.name))
                logger.debug("Clip %s becomes Relu", node.name)
        return ir.passes.PassResult(model, modified=bool(self.nodes))


def _upper_bound(node: ir.Node) -> float | None:
    """b of a Clip to [0, b], else None."""
    if not is_op(node, "Clip") or len(node.inputs) < 3 or scalar_value(node.inputs[1]) != 0:
        return None
    bound = scalar_value(node.inputs[2])
    return bound if bound is not None and 0 < bound < np.inf else None
