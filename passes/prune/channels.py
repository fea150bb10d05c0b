"""`choose_channels`: which channels go, by the L1 norms of their filters."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Int
from numpy.typing import NDArray

from passes.graph.affine import Array
from passes.graph.editing import as_float64, constant_value, is_op, name_of
from passes.prune.plan import CannotPrune, ChannelGroup, ChannelPlan, Count, Cut, Kept
from passes.prune.tracing import Layer, Traced, trace


def choose_channels(model: ir.Model, *, ratio: float, multiple: int = 8) -> ChannelPlan:
    """The channels of each layer with the smallest filters, as far as nothing keeps them.

    Args:
        model: canonical, with inferred shapes. It is only read.
        ratio: of each layer's output channels to remove, between 0 and 1.
        multiple: of which a layer keeps one, the nearest to what `ratio` asks for; a layer of fewer channels keeps all.

    Channels that go together (residual sums, depthwise layers, gates) are judged together: by the sum of the L1 norms
    of all filters that make them. In a group that several layers of different widths share, the narrow ones decide
    first.

    Raises:
        CannotPrune: a layer would be left without channels.

    Source: L1 norms, Li et al., Pruning Filters for Efficient ConvNets, arXiv 1608.08710.
    """
    found = trace(model)
    fixed, scores = found.classes.reasons(), _scores(found)
    groups = _groups(found)
    gone: set[int] = set()
    for layers in groups:
        gone |= _chosen(layers, found, fixed, scores, ratio, multiple)
    gone = _none_empty(found, gone, scores)
    return _plan(found, groups, fixed, gone)


def filter_norms(node: ir.Node) -> Float64[Array, "o"]:
    """(O,) the L1 norm of the filter of each output channel of a layer with a constant weight."""
    weight = constant_value(node.inputs[1])
    assert weight is not None
    absolute = np.abs(as_float64(weight))
    if is_op(node, "Conv"):
        return np.asarray(absolute.reshape(len(absolute), -1).sum(axis=1))
    if is_op(node, "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        split = absolute.reshape(groups, len(absolute) // groups, absolute.shape[1], -1)
        return np.asarray(split.sum(axis=(1, 3)).reshape(-1))
    return np.asarray(absolute.sum(axis=1 if node.attributes.get_int("transB", 0) else 0))


def _scores(found: Traced) -> dict[int, float]:
    """Class → the sum of the norms of the filters that make its channels."""
    scores: dict[int, float] = {}
    for layer in found.layers:
        for root, norm in zip(found.classes.roots(layer.atoms).tolist(), filter_norms(layer.node), strict=True):
            scores[root] = scores.get(root, 0.0) + float(norm)
    return scores


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


def _chosen(
    layers: list[Layer],
    found: Traced,
    fixed: dict[int, str],
    scores: dict[int, float],
    ratio: float,
    multiple: int,
) -> set[int]:
    """The classes of one group that go."""
    gone: set[int] = set()
    decided: set[int] = set()
    for layer in sorted(layers, key=lambda layer: len(layer.atoms)):
        roots, counts = np.unique(found.classes.roots(layer.atoms), return_counts=True)
        size = dict(zip(roots.tolist(), counts.tolist(), strict=True))
        free = sorted(size.keys() - fixed.keys() - decided, key=lambda root: (scores[root], root))
        wanted = _wanted(layer, ratio, multiple) if free else len(layer.atoms)
        kept = sum(count for root, count in size.items() if root not in gone)
        going = _fewest_beyond(free, size, kept, wanted, multiple)
        gone.update(free[:going])
        decided |= size.keys()
    return gone


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


def _fewest_beyond(free: list[int], size: dict[int, int], kept: int, wanted: int, multiple: int) -> int:
    """How many of `free`, in this order, go: as many as leave `wanted` channels and a multiple, of `kept`."""
    best, left = 0, kept
    for number, root in enumerate(free, start=1):
        left -= size[root]
        if left < wanted:
            break
        if left % multiple == 0:
            best = number
    return best


def _none_empty(found: Traced, gone: set[int], scores: dict[int, float]) -> set[int]:
    """Without the best channel of each value that would lose all, as a part of a Split may."""
    for axis in found.axes.values():
        roots = set(found.classes.roots(axis.atoms).tolist())
        if roots <= gone:
            gone = gone - {max(roots, key=lambda root: (scores.get(root, 0.0), root))}
    return gone


def _plan(found: Traced, groups: list[list[Layer]], fixed: dict[int, str], gone: set[int]) -> ChannelPlan:
    roots = found.classes.roots

    def stays(atoms: Int[NDArray[np.int64], "n"]) -> NDArray[np.bool_]:
        return ~np.isin(roots(atoms), list(gone))

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
