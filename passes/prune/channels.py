"""`ChannelChoice`: which channels go, of every group as many as a ratio says."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
from jaxtyping import Int
from numpy.typing import NDArray

from passes.graph.editing import name_of
from passes.prune.importance import Covariances, Importance
from passes.prune.plan import CannotPrune, ChannelGroup, ChannelPlan, Count, Cut, Kept
from passes.prune.tracing import Layer, Traced, trace


def choose_channels(
    model: ir.Model, *, ratio: float, multiple: int = 8, covariances: Covariances | None = None
) -> ChannelPlan:
    """The same ratio for all groups: `ChannelChoice` says what the arguments are."""
    choice = ChannelChoice(model, multiple=multiple, covariances=covariances)
    return choice.plan([ratio] * len(choice.groups))


class ChannelChoice:
    """The channels whose loss costs least, of each group of layers for any ratio.

    Args:
        model: canonical, with inferred shapes. It is only read.
        multiple: of which a layer keeps one, the nearest to what a ratio asks for; a layer of fewer channels keeps all.
        covariances: of what layers read, as `Importance` takes them; without them BatchNormalizations tell what is.

    Attributes:
        groups: of layers, by name, whose channels go together (residual sums, depthwise layers, gates), in graph order.

    Channels that go together are judged together, and in a group that several layers of different widths share, the
    narrow ones decide first.
    """

    def __init__(self, model: ir.Model, *, multiple: int = 8, covariances: Covariances | None = None) -> None:
        self._found = trace(model)
        self._fixed = self._found.classes.reasons()
        self._importance = Importance(model, self._found, covariances or {})
        self._multiple = multiple
        self._layers = _groups(self._found)
        self._chosen = cache(self._choose)
        self.groups = tuple(tuple(name_of(layer.node) for layer in layers) for layers in self._layers)

    def plan(self, ratios: Sequence[float]) -> ChannelPlan:
        """What goes.

        Args:
            ratios: of each group's layers the share of their output channels to remove, from 0 to 1.

        Raises:
            CannotPrune: a layer would be left without channels.
        """
        gone: frozenset[int] = frozenset()
        for number, ratio in enumerate(ratios):
            gone |= self._chosen(number, ratio)
        gone = _none_empty(self._found, gone, self._importance.losses())
        return _plan(self._found, self._layers, self._fixed, gone)

    def _choose(self, number: int, ratio: float) -> frozenset[int]:
        """The classes of one group that go."""
        gone: set[int] = set()
        decided: set[int] = set()
        importance, multiple = self._importance, self._multiple
        for layer in sorted(self._layers[number], key=lambda layer: len(layer.atoms)) if ratio > 0 else ():
            roots, counts = np.unique(self._found.classes.roots(layer.atoms), return_counts=True)
            size = dict(zip(roots.tolist(), counts.tolist(), strict=True))
            free = size.keys() - self._fixed.keys() - decided
            wanted = _wanted(layer, ratio, multiple) if free else len(layer.atoms)
            kept = sum(count for root, count in size.items() if root not in gone)
            order = importance.order(free, kept - wanted)
            going = order[: _fewest_beyond(order, size, kept, wanted, multiple)]
            importance = importance.without(going)
            gone.update(going)
            decided |= size.keys()
        return frozenset(gone)


def _groups(found: Traced) -> list[list[Layer]]:
    """Layers that share a class, in graph order of the first of each."""
    home: dict[int, int] = {}  # class → number of its group
    groups: dict[int, list[Layer]] = {}
    for number, layer in enumerate(found.layers):
        roots = set(found.classes.roots(layer.atoms).tolist())
        shared = sorted({home[root] for root in roots if root in home})
        target = shared[0] if shared else number
        for other in shared[1:]:
            groups[target] += groups.pop(other)
            home.update({root: target for root, place in home.items() if place == other})
        groups.setdefault(target, []).append(layer)
        home.update(dict.fromkeys(roots, target))
    return [groups[number] for number in sorted(groups)]


def _wanted(layer: Layer, ratio: float, multiple: int) -> int:
    """How many channels a layer is to keep: the nearest multiple, one at least, and no more than there are."""
    channels = len(layer.atoms)
    if channels <= multiple:
        return channels
    if round(channels * (1 - ratio)) < 1:
        raise CannotPrune(
            f"A share of {ratio:g} leaves no channel of {layer.node.op_type} {name_of(layer.node)!r}, which has "
            f"{channels}; remove fewer."
        )
    return max(round(channels * (1 - ratio) / multiple), 1) * multiple


def _fewest_beyond(free: Sequence[int], size: Mapping[int, int], kept: int, wanted: int, multiple: int) -> int:
    """How many of `free`, in this order, go: as many as leave `wanted` channels and a multiple, of `kept`."""
    best, left = 0, kept
    for number, root in enumerate(free, start=1):
        left -= size[root]
        if left < wanted:
            break
        if left % multiple == 0:
            best = number
    return best


def _none_empty(found: Traced, gone: frozenset[int], losses: Mapping[int, float]) -> frozenset[int]:
    """Without the best channel of each value that would lose all, as a part of a Split may."""
    for axis in found.axes.values():
        roots = set(found.classes.roots(axis.atoms).tolist())
        if roots <= gone:
            gone = gone - {max(roots, key=lambda root: (losses.get(root, 0.0), root))}
    return gone


def _plan(found: Traced, groups: list[list[Layer]], fixed: Mapping[int, str], gone: frozenset[int]) -> ChannelPlan:
    roots, going = found.classes.roots, np.array(sorted(gone), np.int64)

    def stays(atoms: Int[NDArray[np.int64], "n"]) -> NDArray[np.bool_]:
        return ~np.isin(roots(atoms), going)

    values = {
        name_of(value): Kept(axis=axis.axis, channels=np.flatnonzero(kept), before=len(kept))
        for value, axis in found.axes.items()
        if not (kept := stays(axis.atoms)).all()
    }
    cuts = [
        Cut(node=name_of(held.node), slot=held.slot, axis=held.axis, kept=np.flatnonzero(kept))
        for held in found.held
        if not (kept := stays(held.atoms)).all()
    ]
    counts = [
        Count(node=name_of(one.node), slot=one.slot, index=one.index, value=int(stays(one.atoms).sum()))
        for one in found.counted
        if not stays(one.among).all()
    ]
    return ChannelPlan(
        cuts=tuple(cuts),
        counts=tuple(counts),
        values=values,
        groups=tuple(
            ChannelGroup(
                layers=tuple(name_of(layer.node) for layer in layers),
                channels=sum(len(layer.atoms) for layer in layers),
                kept=sum(int(stays(layer.atoms).sum()) for layer in layers),
                why=next(
                    (fixed[root] for layer in layers for root in roots(layer.atoms).tolist() if root in fixed), None
                ),
            )
            for layers in groups
        ),
    )
