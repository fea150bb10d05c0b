"""`KeptFloat`: what of a graph stays float, because somebody asked for it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KeptFloat:
    """nodes: names of operators whose weights, constants and outputs stay float. values: names of values, or of
    initializers, that stay float themselves, whoever computes or reads them."""

    nodes: frozenset[str] = frozenset()
    values: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.nodes or self.values)


NOTHING_KEPT = KeptFloat()
