"""The caller's side: one task asked of the server, which starts with the first call."""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from onnxdfq import errors
from onnxdfq.errors import DfqError
from onnxdfq.sandbox.limits import Limits, name_of_signal

_SERVERS: dict[str, tuple["subprocess.Popen[bytes]", socket.socket]] = {}  # those that run, by module
_LOCK = threading.Lock()
_SURROUNDINGS = {
    "OPENBLAS_NUM_THREADS": "1",  # it starts threads on import, and only the thread that forks lives on in the fork
    "MALLOC_ARENA_MAX": "2",  # each thread's own reserves address space, which is what `Limits.memory` counts
}


class TaskFault(RuntimeError):
    """A task ended in an exception that nobody foresaw, or the server is gone: a fault of ours."""


class Ended(Exception):
    """A task that came to no end of its own.

    Attributes:
        stage: What it did at the end, as in "converting it"; "" before it told any.
        how: "memory", "time" or "crash".
        signal: Name of the signal that ended it; "" where none did.
    """

    def __init__(self, *, stage: str, how: str, signal: str = "") -> None:
        super().__init__(f"{how} {signal} while {stage}")
        self.stage, self.how, self.signal = stage, how, signal


class Call:
    """A task that runs in a process of its own from now on; a context manager, whose end ends the task.

    Args:
        program: Module whose `__main__` serves the task (`serve`).
        task: Its name there.
        arguments: Named; what JSON can say. Paths may be relative to the current folder.
        limits: That it is held to.
    """

    def __init__(self, program: str, task: str, arguments: Mapping[str, Any], limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(_door(program), [b"."], [theirs.fileno()])
            except OSError:  # somebody ended the server: another one
                _SERVERS.pop(program, None)
                socket.send_fds(_door(program), [b"."], [theirs.fileno()])
        self._socket = ours
        self._lines: BinaryIO = ours.makefile("rb")
        self._stage = ""
        request = {"task": task, "arguments": dict(arguments), "limits": asdict(limits), "folder": str(Path.cwd())}
        ours.sendall(json.dumps(request).encode() + b"\n")

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def reached(self, stage: str) -> None:
        """Waits until the task is at a stage. Raises as `result` does."""
        while self._stage != stage:
            self._next()

    def result(self) -> Any:
        """Waits for what the task returns.

        Raises:
            DfqError: The task raised it.
            Ended: Its limits, or a crash, ended it.
            TaskFault: It raised something else.
        """
        while True:
            found = self._next()
            if "value" in found:
                return found["value"]

    def _next(self) -> Mapping[str, Any]:
        found = self._said()
        self._stage = found.get("stage", self._stage)
        if "error" in found:
            raise _error(**found["error"])
        if "memory" in found:
            raise Ended(stage=self._stage, how="memory")
        if "slow" in found:
            raise Ended(stage=self._stage, how="time")
        if "died" in found:
            name = name_of_signal(found["died"])
            raise Ended(stage=self._stage, how="time" if name == "SIGXCPU" else "crash", signal=name)
        if "fault" in found:
            raise TaskFault("{kind} in {where}: {text}".format(**found["fault"]))
        return found

    def _said(self) -> dict[str, Any]:
        for line in self._lines:
            try:
                found = json.loads(line)
            except ValueError:  # half a line of a worker that was killed
                continue
            if isinstance(found, dict):
                return found
        raise TaskFault(f"the process that reads models is gone, while it was {self._stage or 'starting'}")


def _error(kind: str, text: str, field: str | None) -> DfqError:
    """What the task raised, made again from plain values."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, errors.InputError):
        return found(text, field=field)
    return errors.InputError(text, field=field)


def _door(program: str) -> socket.socket:
    """The socket of the server, which is started where none runs."""
    with _LOCK:
        if program not in _SERVERS:
            ours, theirs = socket.socketpair()
            with theirs:
                paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path)
                process = subprocess.Popen(
                    # -P: the current folder, which may be a stranger's, holds no modules
                    [sys.executable, "-P", "-m", program, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "PYTHONPATH": paths, **_SURROUNDINGS},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is the caller's
                )
            _SERVERS[program] = process, ours
            atexit.register(_stop, process, ours)
        return _SERVERS[program][1]


def _stop(process: "subprocess.Popen[bytes]", door: socket.socket) -> None:
    door.close()  # which it sees, unless another process may still ask
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=1)
