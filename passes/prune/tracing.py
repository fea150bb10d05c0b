"""`trace`: which channels of a graph hang together, and what each node holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from jaxtyping import Int

from passes.graph.editing import constant_value, name_of, node_titles
from passes.prune.classes import Atoms, ChannelAxis, Classes


class NotFollowed(Exception):
    """A rule cannot tell what becomes of the channels that a node reads; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """Channels in a constant of a node: `slot`, of which they are the `axis`."""

    node: ir.Node
    slot: int
    axis: int
    atoms: Int[Atoms, "n"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Counted:
    """A number of channels in a constant of a node, the entry `index` of `slot`; None for the attribute `group`.

    among: the channels that the number is counted in; where some of these go, a negative one counts otherwise.
    """

    node: ir.Node
    slot: int | None
    index: int
    atoms: Int[Atoms, "n"]
    among: Int[Atoms, "m"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A layer and (n,) its output channels."""

    node: ir.Node
    atoms: Int[Atoms, "n"]


@dataclass(kw_only=True, eq=False)
class Traced:
    """What tracing finds. axes: of each value whose channels are followed."""

    classes: Classes = field(default_factory=Classes)
    axes: dict[ir.Value, ChannelAxis] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    titles: dict[ir.Node, str] = field(default_factory=dict)

    def axis_of(self, value: ir.Value | None) -> ChannelAxis | None:
        """Where the channels of a value lie; None where nothing follows them."""
        return None if value is None else self.axes.get(value)

    def along(self, node: ir.Node, value: ir.Value | None, axis: int, size: int | None = None) -> Int[Atoms, "n"]:
        """The channels of an input of `node` along `axis`; ones that have to stay where nothing follows them.

        Raises:
            NotFollowed: they lie on another axis, or nothing tells how many there are.
        """
        found = self.axis_of(value)
        if found is not None:
            if found.axis != axis or size not in (None, len(found.atoms)):
                raise NotFollowed(f"it reads {name_of(value)!r}, whose channels lie on another axis")
            return found.atoms
        if size is None:
            size = _size(value, axis)
            if size is None:
                raise NotFollowed(f"it reads {name_of(value)!r}, of an unknown number of channels")
        atoms = self.classes.new(size)
        self.classes.fix(atoms, self.says(node, f"it reads {name_of(value)!r}, whose channels are not a layer's"))
        return atoms

    def says(self, node: ir.Node, why: str) -> str:
        """A reason as users read it."""
        return f"{node.op_type} {self.titles.get(node, node.name)}: {why}"

    def hold(self, node: ir.Node, slot: int, axis: int, atoms: Int[Atoms, "n"]) -> None:
        """Note that the constant `slot` loses along `axis` what goes."""
        self.held.append(Held(node=node, slot=slot, axis=axis, atoms=atoms))

    def count(
        self,
        node: ir.Node,
        slot: int | None,
        index: int,
        atoms: Int[Atoms, "n"],
        among: Int[Atoms, "m"] | None = None,
    ) -> None:
        """Note that an entry of the constant `slot` is the number of these."""
        among = atoms if among is None else among
        self.counted.append(Counted(node=node, slot=slot, index=index, atoms=atoms, among=among))


def trace(model: ir.Model) -> Traced:
    """Follow channels from the layers that make them to those that read them.

    Args:
        model: canonical, with inferred shapes; BatchNormalizations in place or folded. It is only read.

    Channels are united where an operator combines them one by one (residual sums, gates), and have to stay where they
    enter or leave the graph, where a subgraph reads them, and at every operator that no rule speaks of.
    """
    from passes.prune.rules import RULES  # rules speak of what is traced

    found = Traced(titles=node_titles(model.graph))
    for node in model.graph:
        held, counted = len(found.held), len(found.counted)
        try:
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None:
                if not any(value in found.axes for value in node.inputs):
                    continue
                raise NotFollowed("pruning does not know what it does to channels")
            axes: Sequence[ChannelAxis | None] = rule(node, found)
        except NotFollowed as why:
            del found.held[held:], found.counted[counted:]
            for value in node.inputs:
                if (axis := found.axis_of(value)) is not None:
                    found.classes.fix(axis.atoms, found.says(node, str(why)))
            continue
        for value, result in zip(node.outputs, axes, strict=False):
            if result is not None:
                found.axes[value] = result
    _fix_what_leaves(model.graph, found)
    return found


def _fix_what_leaves(graph: ir.Graph, found: Traced) -> None:
    for value, axis in found.axes.items():
        if value.is_graph_output():
            found.classes.fix(axis.atoms, f"its channels are those of the output {name_of(value)!r}")
        elif any(use.node.graph is not graph for use in value.uses()):
            found.classes.fix(axis.atoms, f"a subgraph reads {name_of(value)!r}")


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Of a value along one axis, where it is known."""
    constant = constant_value(value)
    shape = constant.shape if constant is not None else None if value is None else value.shape
    if shape is None or axis >= len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def tiled(source: ChannelAxis, shape: Sequence[int]) -> Int[Atoms, "..."]:
    """The channel of every number of a value of this shape."""
    inner = [1] * len(shape)
    inner[source.axis] = -1
    return np.broadcast_to(source.atoms.reshape(inner), tuple(shape))
