"""The most memory that a command and its children hold at once, looked up in /proc while it runs (Linux)."""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.02  # seconds


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one command took.

    resident: bytes of all its processes together, at the moment when these were most; pages that several of them
    share count for each. anonymous: at most, those of them that lie in no file. seconds: that it ran.
    """

    resident: int
    anonymous: int
    seconds: float
    code: int
    said: str


def measured(command: Sequence[str], *, env: dict[str, str] | None = None) -> Usage:
    """Runs it to its end."""
    started = time.monotonic()
    resident = anonymous = 0
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:  # a pipe that nobody reads would fill
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=env)
        while process.poll() is None:
            sizes = [_sizes(pid) for pid in _tree(process.pid)]
            resident = max(resident, sum(size[0] for size in sizes))
            anonymous = max(anonymous, sum(size[1] for size in sizes))
            time.sleep(INTERVAL)
        seconds = round(time.monotonic() - started, 1)
        said.seek(0)
        return Usage(resident=resident, anonymous=anonymous, seconds=seconds, code=process.returncode, said=said.read())


def _tree(pid: int) -> Iterator[int]:
    """The process and all that descend from it."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has just ended
        return
    for child in children:
        yield from _tree(int(child))


def _sizes(pid: int) -> tuple[int, int]:
    """Bytes in memory, and those of them that lie in no file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if "VmRSS" not in found:  # it has ended, and nobody has asked for its status yet
        return 0, 0
    return tuple(1024 * int(found[name].split()[0]) for name in ("VmRSS", "RssAnon"))  # type: ignore[return-value]
