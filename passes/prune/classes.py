"""Channels that can only go together: union-find over single channels of values."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

Atoms = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelAxis:
    """Where the channels of a value lie.

    axis: 1 or more. atoms: (n,) the channel that each index along it belongs to; behind Flatten one has several.
    """

    axis: int
    atoms: Int[Atoms, "n"]


class Classes:
    """Union-find over channels. Each value's channels are made as atoms; what an operator ties together is united."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: dict[int, str] = {}  # atom → why it has to stay
        self._settled: Atoms | None = None  # atom → class, until something is united

    def new(self, count: int) -> Int[Atoms, "{count}"]:
        """So many atoms, each a class of its own."""
        start, self._settled = len(self._parent), None
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def unite(self, one: Int[Atoms, "*n"], other: Int[Atoms, "*n"]) -> None:
        """Each atom of `one` goes along with that of `other` in its place."""
        self._settled = None
        pairs = np.unique(np.stack([one.reshape(-1), other.reshape(-1)], axis=1), axis=0)
        for left, right in pairs.tolist():
            a, b = self._find(left), self._find(right)
            self._parent[max(a, b)] = min(a, b)

    def fix(self, atoms: Int[Atoms, "n"], why: str) -> None:
        """These, and all that go along with them, have to stay. Of several reasons the first is told."""
        for atom in np.unique(atoms).tolist():
            self._fixed.setdefault(atom, why)

    def roots(self, atoms: Int[Atoms, "*n"]) -> Int[Atoms, "*n"]:
        """The class of each atom."""
        if self._settled is None:
            self._settled = np.array([self._find(atom) for atom in range(len(self._parent))], np.int64)
        return self._settled[atoms]

    def reasons(self) -> dict[int, str]:
        """Class → why it has to stay; a class that may go is absent."""
        found: dict[int, str] = {}
        for atom, why in self._fixed.items():
            found.setdefault(self._find(atom), why)
        return found

    def _find(self, atom: int) -> int:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom
