"""Progress on stderr: rate and remaining time for whatever takes longer than two seconds, and nothing otherwise."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from onnxdfq.shown import sentence

PATIENCE_S = 2.0
REFRESH_S = 0.2
LINES_EVERY_S = 10.0  # where nothing can be rewritten in place, as in a log


class Progress(Protocol):
    """What long-running stages call: units done, units in all, and a short note on what is going on."""

    def __call__(self, done: int, total: int, note: str, /) -> None: ...


ProgressFactory = Callable[[str], Progress | None]
"""Makes the display of one long stage, by its label; None for no display."""


def silent(label: str) -> None:
    """A ProgressFactory that shows nothing."""


class Steps:
    """Counts units of work for a Progress, for work of several parts under one total."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def __call__(self, note: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, note)

    def reach(self, done: int) -> None:
        """So many are done, some of them by an earlier run."""
        self.done = done


class TerminalProgress:
    """A bar of tqdm in a terminal or a notebook, a line every ten seconds elsewhere; nothing for what ends at once.

    Args:
        label: what the stage does.
        stream: where to, by default stderr.
    """

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self.label = sentence(label)
        self.stream = sys.stderr if stream is None else stream
        self.started = self.last = time.monotonic()
        self._bar: Any = None
        self._rewrites = self.stream.isatty() or _in_notebook()

    def __call__(self, done: int, total: int, note: str, /) -> None:
        now = time.monotonic()
        if now - self.started < PATIENCE_S:
            return
        note = sentence(note)
        if self._rewrites:
            self._draw(done, total, note)
        elif now - self.last >= LINES_EVERY_S or (done >= total and self.last > self.started):
            self.last = now
            rate = done / (now - self.started)
            left = clock((total - done) / rate) if rate else "?"
            self.stream.write(f"{self.label}  {done}/{total}  {rate:.1f}/s  {left} left  {note}\n")
            self.stream.flush()

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is not None and time.monotonic() - self.last < REFRESH_S and done < total:
            return
        self.last = time.monotonic()
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                desc=self.label,
                total=total,
                file=self.stream,
                delay=1e-9,  # not drawn before it has something to say
                ncols=shutil.get_terminal_size((120, 24)).columns,  # tqdm hides its bar where the size is not known
                nrows=24,
                bar_format="{desc}  {n_fmt}/{total_fmt}  {rate_fmt}  {remaining} left  {postfix}",
            )
            self._bar.start_t -= time.monotonic() - self.started  # so that the rate is that of the whole stage
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        if done >= total:
            self._bar.close()


def clock(seconds: float) -> str:
    """`75.0` → `1:15`."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    return "ipykernel" in sys.modules
