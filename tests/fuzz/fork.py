"""One run of a function in a fork of a warm process: with limits, in folders of its own, watched to its end."""

import atexit
import ctypes
import faulthandler
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE = 2.0  # seconds between the signal that asks for a stack and the one that kills


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds by the wall clock and of the processor, bytes of memory of its own, and of a file."""

    seconds: float = 60.0
    processor: int = 40
    memory: int = 4 * 2**30
    file: int = 2**30


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run did.

    code: of the exit, or a signal below zero. memory: bytes at its peak, of the largest of its processes. over_time:
    whether it was killed for that. left: files that are new or changed in its folder; those in the temporary one begin
    with "tmp:". orphans: processes that outlived it. trace: the stack at the moment of death, or of a fault.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    memory: int
    over_time: bool = False
    left: tuple[str, ...] = ()
    orphans: int = 0
    trace: str = ""
    limits: Limits = field(default_factory=Limits)


def run(function: Callable[[], object], folder: Path, limits: Limits) -> Outcome:
    """Runs `function` in a fork whose current folder is `folder`; SystemExit tells the exit code.

    The caller has one thread and has run no kernels, or the fork may hang.
    """
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        (scratch / "tmp").mkdir()
        before = dict(_files(folder))
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        started, kept = time.monotonic(), _children()
        pid = os.fork()
        if not pid:
            _child(function, folder, scratch, limits)
        with suppress(OSError):
            os.setpgid(pid, pid)
        status, usage, over_time = _watch(pid, limits)
        seconds = time.monotonic() - started
        orphans = _reap(kept)
        changed = [name for name, stamp in _files(folder) if before.get(name) != stamp]
        changed += [f"gone:{name}" for name in before if not os.path.lexists(folder / name)]
        return Outcome(
            code=os.waitstatus_to_exitcode(status),
            stdout=_text(scratch / "stdout"),
            stderr=_text(scratch / "stderr"),
            trace=_text(scratch / "trace"),
            seconds=seconds,
            memory=usage.ru_maxrss * 1024,
            over_time=over_time,
            left=(*changed, *(f"tmp:{name}" for name, _ in _files(scratch / "tmp"))),
            orphans=0 if over_time else orphans,
            limits=limits,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _child(function: Callable[[], object], folder: Path, scratch: Path, limits: Limits) -> None:
    """Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(scratch / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        # as the interpreter opens them, whatever the caller made of them
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        os.chdir(folder)
        os.environ["TMPDIR"] = str(scratch / "tmp")
        tempfile.tempdir = None
        trace = (scratch / "trace").open("a", encoding="utf-8")
        os.environ["FUZZ_TRACE"] = str(trace.fileno())  # for stacks of exceptions that the command line catches
        faulthandler.enable(trace)
        faulthandler.register(signal.SIGXCPU, trace, chain=True)
        for kind, soft, hard in (
            (resource.RLIMIT_CPU, limits.processor, limits.processor + 5),
            (resource.RLIMIT_DATA, limits.memory, limits.memory),
            (resource.RLIMIT_FSIZE, limits.file, limits.file),
            (resource.RLIMIT_CORE, 0, 0),
        ):
            resource.setrlimit(kind, (soft, hard))
        code = _ended(function)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _ended(function: Callable[[], object]) -> int:
    """The exit code that the interpreter would give."""
    try:
        function()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _watch(pid: int, limits: Limits) -> tuple[int, resource.struct_rusage, bool]:
    """Waits; asks for a stack and kills the group where it takes too long."""
    end = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(end, select.POLLIN)
    over_time = False
    try:
        if not poll.poll(1000 * limits.seconds):
            over_time = True
            os.kill(pid, signal.SIGXCPU)
            poll.poll(1000 * GRACE)
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
    finally:
        os.close(end)
    return status, usage, over_time or -os.waitstatus_to_exitcode(status) == signal.SIGXCPU


def _reap(kept: set[int]) -> int:
    """Ends what outlived the run, all but `kept`, and counts it."""
    count, patience = 0, time.monotonic() + 1.0
    while others := _children() - kept:
        for pid in others:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > patience:
            for pid in others & _children():
                count += 1
                os.kill(pid, signal.SIGKILL)
            patience = time.monotonic() + 1.0
        time.sleep(0.01)
    return count


def _children() -> set[int]:
    """Of this process; grandchildren without a parent are."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def _files(folder: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """All that lies in a folder, with size and time of files; links are not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            found = path.lstat()
            stamp = (found.st_mode, 0, 0) if name in folders else (found.st_mode, found.st_size, found.st_mtime_ns)
            yield str(path.relative_to(folder)), stamp


def _text(path: Path) -> str:
    """The file as text; bytes that are none are kept, so that the verdict sees them."""
    return path.read_bytes()[: 2**20].decode("utf-8", "surrogateescape") if path.exists() else ""
