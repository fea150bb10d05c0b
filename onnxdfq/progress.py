"""Progress on stderr: rate and remaining time for whatever takes longer than two seconds, and nothing otherwise."""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

PATIENCE_S = 2.0
REFRESH_S = 0.2


class Progress(Protocol):
    """What long-running steps call: steps done, steps in all, and a short note on what is going on."""

    def __call__(self, done: int, total: int, note: str, /) -> None: ...


class Steps:
    """Counts steps for a Progress, for work of several parts under one total."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def __call__(self, note: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, note)


class TerminalProgress:
    """One line that is rewritten in place; silent when stderr is no terminal, or for what ends within two seconds."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = label
        self.stream = sys.stderr if stream is None else stream
        self.started = time.monotonic()
        self.shown = 0.0
        self.active = self.stream.isatty()

    def __call__(self, done: int, total: int, note: str, /) -> None:
        now = time.monotonic()
        elapsed = now - self.started
        if not self.active or elapsed < PATIENCE_S or (now - self.shown < REFRESH_S and done < total):
            return
        self.shown = now
        rate = done / elapsed
        left = (total - done) / rate if rate else float("inf")
        line = f"{self.label}  {done}/{total}  {rate:.1f}/s  {clock(left)} left  {note}"
        self.stream.write(f"\r\033[K{line}" + ("\n" if done >= total else ""))
        self.stream.flush()


def clock(seconds: float) -> str:
    """`75.0` → `1:15`."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


ProgressFactory = Callable[[str], Progress | None]
"""Makes the display of one long stage, by its label; None for no display."""


def silent(label: str) -> None:
    """A ProgressFactory that shows nothing."""
