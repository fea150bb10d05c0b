"""What pruning has decided, as plain numbers that the edits carry out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray


class CannotPrune(ValueError):
    """What was asked for cannot be done to this graph; the message is a sentence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Of the constant input `slot` of a node the indices along `axis` that stay."""

    node: str
    slot: int
    axis: int
    kept: Int[NDArray[np.int64], "n"]


@dataclass(frozen=True, kw_only=True)
class Count:
    """A number of channels that a node holds: the entry `index` of its constant input `slot`.

    slot: None for the attribute `group`.
    """

    node: str
    slot: int | None
    index: int
    value: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The channels of a value that stay. axis: where they lie. channels: old indices, ascending. before: how many
    there were."""

    axis: int
    channels: Int[NDArray[np.int64], "n"]
    before: int


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Layers whose output channels hang together.

    layers: names. channels, kept: outputs of all of them, before and after. why: what keeps channels that would have
    gone, None where nothing does.
    """

    layers: tuple[str, ...]
    channels: int
    kept: int
    why: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelPlan:
    """Which channels go. values: by name, of each value that loses some. groups: in graph order."""

    cuts: tuple[Cut, ...]
    counts: tuple[Count, ...]
    values: Mapping[str, Kept]
    groups: tuple[ChannelGroup, ...]

    @property
    def removed(self) -> int:
        """Output channels of layers that go."""
        return sum(group.channels - group.kept for group in self.groups)


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroPlan:
    """Which weights become zero.

    masks: layer → of its weight's shape, true where the weight stays. skipped: layer → why it is left as it is.
    """

    masks: Mapping[str, Bool[NDArray[np.bool_], "..."]]
    skipped: Mapping[str, str]
