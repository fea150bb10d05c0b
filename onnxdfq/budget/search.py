"""The multiple-choice knapsack: one option of each group, the least total loss, a total cost within a limit. Exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Front:
    """The Pareto front of a group: (K,) each, costs rise and losses fall. indices: places in the group."""

    costs: Vector
    losses: Vector
    indices: NDArray[np.intp]


def least_loss(groups: Sequence[Sequence[tuple[float, float]]], limit: float) -> list[int] | None:
    """One option of each group, so that the summed loss is least while the summed cost is within a limit.

    Args:
        groups: Of each group the options as (cost, loss), costs in whole numbers up to 2**53.
        limit: Of the summed cost.

    Returns:
        The place of the option in each group; None when even the cheapest together cost more than `limit`.

    Dynamic programming over the groups (Dudzinski and Walukiewicz 1987): of partial choices only those stay that are
    neither dearer and worse than another, nor, with the best that a linear relaxation promises for the groups still to
    come, worse than a choice at hand (Sinha and Zoltners 1979). Neither rule drops every best choice.
    """
    fronts = [_front(group) for group in groups]
    relaxations = [_Relaxation(fronts[index:]) for index in range(len(fronts) + 1)]
    if relaxations[0].cheapest > limit:
        return None
    incumbent = relaxations[0].rounded_down(limit)
    costs, losses = np.zeros(1), np.zeros(1)
    origins: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []  # of each choice: the partial one, and the option
    for front, rest in zip(fronts, relaxations[1:], strict=True):
        cost = (costs[:, None] + front.costs).ravel()
        loss = (losses[:, None] + front.losses).ravel()
        bound = loss + rest.least(limit - cost)
        kept = np.flatnonzero(bound <= incumbent * (1 + 1e-9) + 1e-300)
        kept = kept[_undominated(cost[kept], loss[kept])]
        origins.append((kept // len(front.costs), front.indices[kept % len(front.costs)]))
        costs, losses = cost[kept], loss[kept]
    best = int(np.argmin(losses))
    picked = []
    for before, option in reversed(origins):
        picked.append(int(option[best]))
        best = int(before[best])
    return picked[::-1]


def pareto(options: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the Pareto-optimal among options (cost, loss), cheapest first."""
    front = _front(options)
    return [int(index) for index in front.indices]


def _front(options: Sequence[tuple[float, float]]) -> _Front:
    costs, losses = np.asarray(options, np.float64).T
    kept = _undominated(costs, losses)
    return _Front(costs=costs[kept], losses=losses[kept], indices=kept)


def _undominated(costs: Vector, losses: Vector) -> NDArray[np.intp]:
    order = np.lexsort((losses, costs))
    least_before = np.minimum.accumulate(np.concatenate([[np.inf], losses[order][:-1]]))
    return order[losses[order] < least_before]


class _Relaxation:
    """The least loss of some groups when options may be mixed: a convex, piecewise linear function of the cost."""

    def __init__(self, fronts: Sequence[_Front]) -> None:
        self.cheapest = float(sum(front.costs[0] for front in fronts))
        dearest = float(sum(front.losses[0] for front in fronts))
        edges = [edge for front in fronts for edge in _hull_edges(front)]
        edges.sort(key=lambda edge: edge[1] / edge[0])  # the greatest gain per cost first
        extra, gain = np.asarray(edges, np.float64).reshape(-1, 2).T
        self._costs = self.cheapest + np.concatenate([[0.0], np.cumsum(extra)])
        self._losses = dearest + np.concatenate([[0.0], np.cumsum(gain)])

    def least(self, limits: Vector) -> Vector:
        """A lower bound of the loss for each limit; infinite where the groups do not fit."""
        bound = np.interp(limits, self._costs, self._losses)
        return np.where(limits < self.cheapest, np.inf, bound)

    def rounded_down(self, limit: float) -> float:
        """The loss of a choice that fits: whole edges in order, up to the first that does not fit."""
        return float(self._losses[np.searchsorted(self._costs, limit, side="right") - 1])


def _hull_edges(front: _Front) -> list[tuple[float, float]]:
    """(more cost, change of loss) between the corners of the front's lower convex hull."""
    corners: list[tuple[float, float]] = []
    for point in zip(front.costs.tolist(), front.losses.tolist(), strict=True):
        while len(corners) > 1 and _turns_up(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    return [(c1 - c0, l1 - l0) for (c0, l0), (c1, l1) in pairwise(corners)]


def _turns_up(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Whether `middle` lies on or above the line from `first` to `last`."""
    return (middle[1] - first[1]) * (last[0] - first[0]) >= (last[1] - first[1]) * (middle[0] - first[0])
