"""What a compressed or pruned model may cost at most, in bytes, operations, time and equal answers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from onnxdfq.errors import InputError

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_TIMES = {"us": 1e-3, "ms": 1, "s": 1e3}
_UNITS: dict[str, Mapping[str, float]] = {"size": _SIZES, "bops": _COUNTS, "macs": _COUNTS, "latency": _TIMES}
_FORMS = {
    "size": "size=0.5MB (B, kB, MB, GB, KiB, MiB, GiB)",
    "bops": "bops=1.2G (k, M, G, T)",
    "macs": "macs=20M (k, M, G, T)",
    "latency": "latency=5ms (us, ms, s)",
}
MOST = 1e18
Kind = Literal["size", "bops", "macs", "latency"]
OF_BITS: tuple[Kind, ...] = ("size", "bops")
OF_CHANNELS: tuple[Kind, ...] = ("size", "macs", "latency")
SEVERAL = (
    f"{', '.join(_FORMS[kind] for kind in OF_BITS)}, drop=0.5 (points of equal answers), or drop and one of the others "
    "between commas"
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """kind: "size", bytes of all weights and their scales; "bops", bit operations per image: multiplications times
    bits of the weight times bits of the activation; "macs", multiplications per image; "latency", milliseconds for
    one. share: whether `limit` is a share of what the float model costs."""

    kind: Kind
    limit: float
    share: bool = False

    @classmethod
    def parse(cls, text: str, kinds: Sequence[Kind] = OF_BITS, *, shares: bool = False) -> "Budget":
        """`size=0.5MB` (B, kB, MB, GB by 1000; KiB, MiB, GiB by 1024), `bops=1.2G` or `macs=20M` (k, M, G, T), or
        `latency=5ms` (us, ms, s).

        Args:
            text: as above.
            kinds: that are taken.
            shares: whether a number below 1 without a unit is a share: `macs=0.8`.

        Raises:
            InputError: it is anything else.
        """
        match = re.fullmatch(r"([a-z]+)=([0-9]+\.?[0-9]*|\.[0-9]+)([a-z]*)", text.strip().lower())
        kind = next((kind for kind in kinds if match is not None and kind == match[1]), None)
        share = shares and match is not None and not match[3] and 0 < float(match[2]) < 1
        if match is None or kind is None or not (share or match[3] in _UNITS[kind]):
            forms = [_FORMS[kind] for kind in kinds]
            also = ", nor a share of what the model costs, as macs=0.8" if shares else ""
            raise InputError(f"--budget {text!r} is not of the form {', '.join(forms[:-1])} or {forms[-1]}{also}.")
        limit = float(match[2]) * (1 if share else _UNITS[kind][match[3]])
        if limit > MOST:
            raise InputError(f"--budget {text!r} is more than any model costs; give at most {kind}={MOST:.0e}.")
        return cls(kind=kind, limit=limit, share=share)

    def of(self, whole: float) -> "Budget":
        """The same without a share, of a float model that costs so much."""
        return Budget(kind=self.kind, limit=self.limit * whole) if self.share else self

    def rounded_up(self, cost: float) -> str:
        """A budget of this kind that `cost` keeps, as `parse` reads it: `size=45.21kB`."""
        if self.kind == "latency":
            return f"latency={ceil(cost * 1000) / 1000:g}ms"
        unit, factor = next(((unit, n) for unit, n in (("G", 10**9), ("M", 10**6), ("k", 10**3)) if cost >= n), ("", 1))
        number = ceil(cost / factor * 100) / 100
        return f"{self.kind}={number:g}{unit}{'B' if self.kind == 'size' else ''}"

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:g}" if self.share else self.rounded_up(self.limit)


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
            elif kind in OF_BITS and cost is None:
                cost = Budget.parse(part)
            else:
                raise InputError(f"--budget {text!r} is not of the form {SEVERAL}.")
        return cls(cost=cost, drop=drop)
