"""Least squares layer by layer: the weights that remain give what the whole layer gave, as well as they can."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine.cache import Cache
from onnxdfq.images.samples import SamplesLike
from onnxdfq.progress import Progress
from onnxdfq.pruning.frontier import Frontier
from onnxdfq.pruning.shifts import can_shift, restore_statistics, shift_outputs, sum_behind
from onnxdfq.pruning.sums import MOST_FEATURES, Array, SecondMoments, Sums, add_batch, constant_weight, empty_sums
from passes.graph.affine import write_layer
from passes.graph.editing import FreshNames, name_of
from passes.graph.filters import from_filters, to_filters
from passes.prune.plan import ChannelPlan, ZeroPlan

logger = logging.getLogger(__name__)

RIDGE = 0.1  # the best of 0.3, 0.1, 0.03, 0.01 on synthesised images that were held back
MOST_GAIN = 2.0  # of an output that the rest can hardly tell
TINY = 1e-30  # features that never move are left alone by it


def fit_layers(
    pruned: ir.Model,
    original: ir.Model,
    plan: ChannelPlan | ZeroPlan,
    samples: SamplesLike,
    *,
    ridge: float = RIDGE,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """New weights and biases for the layers of a pruned network, in graph order, in place.

    Args:
        pruned: the network after the plan; its values keep the names that they have in `original`.
        original: the network before. It is only read.
        plan: that leads from one to the other; zeros of a plan of weights stay zero.
        samples: in the model's input units.
        ridge: how much of a feature's mean variance pulls the weights to what they were, so that directions which the
            samples hardly show stay as they are.
        device: where networks run.
        progress: is told of each layer.

    Returns:
        The layers that are left as they are, because their operator is not fitted.

    Each layer reads what the layers before it, fitted already, give: min over W, b of
    |Y - X W - b|² + rho |W - W0|², X of the pruned network, Y of the original. On a mask every output has equations of
    its own. Of a layer that is added to a branch, Y takes the error of that branch as well, so that the sum is right.
    Least squares gives less variance than Y has; each output is scaled to that of Y, so that running statistics of a
    BatchNormalization, which are those of the original, stay true.

    Raises:
        OutputError: the temporary folder has no room for the values of a layer.

    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, arXiv 1707.06168, Eq. 3, whose
    regularisation pulls to zero; here it pulls to the weights as they were.
    """
    changed = list(_changed_layers(pruned, plan))
    left = []
    with Cache(dtype=torch.float32) as cache:
        fitting = _Fitting(
            plan=plan,
            pruned=pruned,
            inside=Frontier(pruned, samples, cache, device),
            wanted=Frontier(original, samples, cache, device),
            ridge=ridge,
            device=device,
        )
        originals = {name_of(node): node for node in original.graph}
        for number, node in enumerate(changed):
            if progress is not None:
                progress(number, len(changed), name_of(node))
            if _is_fitted(node):
                restore_statistics(node, originals[name_of(node)], plan)
                fitting.fit(node)
            else:
                left.append(name_of(node))
    return tuple(left)


def _changed_layers(pruned: ir.Model, plan: ChannelPlan | ZeroPlan) -> Iterator[ir.Node]:
    """The layers that give something else than before the plan, in graph order."""
    other: set[ir.Value] = set()
    for node in pruned.graph:
        weight = constant_weight(node)
        if isinstance(plan, ZeroPlan):
            mask = plan.masks.get(name_of(node))
            loses = mask is not None and not mask.all()
        else:
            loses = weight is not None and name_of(node.inputs[0]) in plan.values
        if loses or any(value in other for value in node.inputs):
            other.update(node.outputs)
            if weight is not None:
                yield node


def _is_fitted(node: ir.Node) -> bool:
    weight = constant_weight(node)
    if weight is None:
        return False
    _, _, inputs, taps = to_filters(node, weight).shape
    return bool(inputs * taps <= MOST_FEATURES)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fitting:
    """inside: the pruned network, wanted: the original."""

    plan: ChannelPlan | ZeroPlan
    pruned: ir.Model
    inside: Frontier
    wanted: Frontier
    ridge: float
    device: str

    def fit(self, node: ir.Node) -> None:
        """One layer, of which all before it are fitted."""
        weight = constant_weight(node)
        assert weight is not None
        shifts = can_shift(node)
        sums = self._sums(node, weight)
        found = sums.moments(centred=shifts)
        filters = to_filters(node, weight)
        rows = filters.reshape(*filters.shape[:2], -1)  # (g, O/g, F)
        mask = self.plan.masks.get(name_of(node)) if isinstance(self.plan, ZeroPlan) else None
        free = None if mask is None else to_filters(node, mask).reshape(rows.shape)
        fitted = np.stack(
            [
                _solved(
                    rows[group], found.xx[group], found.xy[group].T, self.ridge, None if free is None else free[group]
                )
                for group in range(len(rows))
            ]
        )
        fitted = fitted * _gains(fitted, found)[:, :, None]
        if not np.isfinite(fitted).all():
            return
        new = from_filters(node, fitted.reshape(filters.shape), weight.shape)
        write_layer(node, FreshNames(self.pruned.graph), weight=new)
        if shifts:
            wanted = (found.y - np.einsum("gof,gf->go", fitted, found.x)).reshape(-1)
            shift_outputs(self.pruned, {name_of(node): wanted}, instead=True)
        logger.debug("%s is fitted to %d positions", node.name, sums.count)

    @torch.no_grad()
    def _sums(self, node: ir.Node, weight: Float64[Array, "_ _ ..."]) -> Sums:
        sums = empty_sums(node, weight, self.device)
        for network in (self.inside, self.wanted):
            network.advance(name_of(node))
        total = sum_behind(node)
        branch = [] if total is None else [name_of(total.branch)]
        read = self.inside.batches([name_of(node.inputs[0]), *branch])
        given = self.wanted.batches([name_of(node.outputs[0]), *branch])
        for (x, *has), (y, *had) in zip(read, given, strict=True):
            y = self._kept(name_of(node.outputs[0]), y)
            if total is not None:
                y = y + total.scaled(self._kept(branch[0], had[0]) - has[0])
            add_batch(node, x, y, sums)
        return sums

    def _kept(self, name: str, values: Tensor) -> Tensor:
        """What is left of a value of the original."""
        kept = self.plan.values.get(name) if isinstance(self.plan, ChannelPlan) else None
        if kept is None:
            return values
        return values.index_select(kept.axis, torch.from_numpy(kept.channels).to(values.device))


def _solved(
    rows: Float64[Array, "o f"],
    xx: Float64[Array, "f f"],
    xy: Float64[Array, "o f"],
    ridge: float,
    mask: Bool[NDArray[np.bool_], "o f"] | None,
) -> Float64[Array, "o f"]:
    """The weights of one group of outputs; masked ones, row by row, stay zero."""
    pull = ridge * max(float(np.trace(xx)) / len(xx), TINY)
    if mask is None:
        return rows + np.linalg.solve(xx + pull * np.eye(len(xx)), (xy - rows @ xx).T).T
    fitted = np.zeros_like(rows)
    for output, free in enumerate(mask):
        part = np.ix_(free, free)
        own = rows[output, free]
        step = np.linalg.solve(xx[part] + pull * np.eye(int(free.sum())), xy[output, free] - xx[part] @ own)
        fitted[output, free] = own + step
    return fitted


def _gains(fitted: Float64[Array, "g o f"], found: SecondMoments) -> Float64[Array, "g o"]:
    """What the deviations of the outputs are less than those that are wanted."""
    has = np.einsum("gof,gfh,goh->go", fitted, found.xx, fitted, optimize=True)
    return np.asarray(np.sqrt(np.clip(found.yy / np.maximum(has, TINY), 1, MOST_GAIN**2)))
