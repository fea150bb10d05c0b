"""Which of several processes this is, as torchrun says it in the environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from onnxdfq.errors import InputError
from onnxdfq.limits import Bounds

NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = "ONNXDFQ_TIMEOUT"
TIMEOUT_S = 1800.0
ADVICE = "start all with torchrun, or unset WORLD_SIZE for one process alone"
RANKS, PORT, SECONDS = Bounds(least=1, most=2**20), Bounds(least=1, most=2**16 - 1), Bounds(least=1, most=10**7)


@dataclass(frozen=True, kw_only=True)
class Place:
    """rank: from 0, of `size`. local: among those on its machine. address, port: where they meet. attempt: how often
    torchrun started them anew. hosted: whether torchrun keeps the place where they meet. timeout: seconds without a
    sign of life, after which a rank is given up. host: the name of its machine."""

    rank: int
    size: int
    address: str
    port: int
    local: int = 0
    attempt: int = 0
    hosted: bool = False
    timeout: float = TIMEOUT_S
    host: str = field(default_factory=socket.gethostname)

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self | None:
        """That of this process; None where it is alone. Raises InputError where the environment does not tell."""
        size = _whole(environment, "WORLD_SIZE", RANKS, "1")
        if size == 1:
            return None
        if missing := [name for name in NEEDED if not environment.get(name)]:
            raise InputError(f"WORLD_SIZE is {size}, and {' and '.join(missing)} is not set; {ADVICE}.")
        rank = _whole(environment, "RANK", Bounds(least=0, most=size - 1))
        return cls(
            rank=rank,
            size=size,
            address=environment["MASTER_ADDR"],
            port=_whole(environment, "MASTER_PORT", PORT),
            local=_whole(environment, "LOCAL_RANK", Bounds(least=0, most=size - 1), str(rank)),
            attempt=_whole(environment, "TORCHELASTIC_RESTART_COUNT", Bounds(least=0, most=2**20), "0"),
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            timeout=_whole(environment, TIMEOUT, SECONDS, f"{TIMEOUT_S:.0f}"),
        )

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"Rank {self.rank} of {self.size} ({self.host})"


def _whole(environment: Mapping[str, str], name: str, bounds: Bounds, default: str = "") -> int:
    text = environment.get(name) or default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) in bounds):
        raise InputError(f"{name} is {text!r} in the environment; it must be a whole number, {bounds}.")
    return int(text)
