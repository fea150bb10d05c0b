"""What a compressed model may cost at most, in bytes, operations and equal answers."""

import re
from dataclasses import dataclass
from math import ceil
from typing import Literal

from onnxdfq.errors import InputError

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
MOST = 1e18
FORM = (
    "size=0.5MB (B, kB, MB, GB, KiB, MiB, GiB), bops=1.2G (k, M, G, T), drop=0.5 (points of equal answers), or drop "
    "and one of the others between commas"
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """kind: "size", bytes of all weights and their scales; "bops", bit operations per image: multiplications times
    bits of the weight times bits of the activation."""

    kind: Literal["size", "bops"]
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`size=0.5MB` (B, kB, MB, GB by 1000; KiB, MiB, GiB by 1024) or `bops=1.2G` (k, M, G, T).

        Raises InputError for anything else.
        """
        match = re.fullmatch(r"(size|bops)=([0-9]+\.?[0-9]*|\.[0-9]+)([a-z]*)", text.strip().lower())
        units = {} if match is None else _SIZES if match[1] == "size" else _COUNTS
        if match is None or match[3] not in units:
            raise InputError(f"--budget {text!r} is not of the form {FORM}.")
        kind: Literal["size", "bops"] = "size" if match[1] == "size" else "bops"
        limit = float(match[2]) * units[match[3]]
        if limit > MOST:
            raise InputError(f"--budget {text!r} is more than any model costs; give at most {kind}={MOST:.0e}.")
        return cls(kind=kind, limit=limit)

    def rounded_up(self, cost: float) -> str:
        """A budget of this kind that `cost` keeps, as `parse` reads it: `size=45.21kB`."""
        unit, factor = next(((unit, n) for unit, n in (("G", 10**9), ("M", 10**6), ("k", 10**3)) if cost >= n), ("", 1))
        number = ceil(cost / factor * 100) / 100
        return f"{self.kind}={number:g}{unit}{'B' if self.kind == 'size' else ''}"

    def __str__(self) -> str:
        return self.rounded_up(self.limit)


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What `--budget` asks for. cost: None where it asks for no bytes or operations. drop: how many points (of a
    hundred) of the float model's classes may change, on inputs that decide nothing else; None where any may."""

    cost: Budget | None = None
    drop: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budgets":
        """`size=0.5MB`, `bops=1.2G`, `drop=0.5`, or drop and one of the others between commas.

        Raises InputError for anything else.
        """
        cost, drop = None, None
        for part in text.split(","):
            kind, _, number = part.strip().lower().partition("=")
            if kind == "drop" and drop is None and re.fullmatch(r"[0-9]{1,2}(\.[0-9]*)?|\.[0-9]+", number.strip()):
                drop = float(number)
            elif kind != "drop" and cost is None:
                cost = Budget.parse(part)
            else:
                raise InputError(f"--budget {text!r} is not of the form {FORM}.")
        return cls(cost=cost, drop=drop)
