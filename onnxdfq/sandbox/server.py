"""The server: one clean process without threads of its own, which forks twice for each task.

The first fork watches, the second works under limits. A process that is forked off this one starts within a
hundredth of a second, with all imports done; forking the caller itself would copy locks that its threads hold.
"""

import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxdfq.errors import DfqError
from onnxdfq.sandbox.limits import Limits

Stage = Callable[[str], None]
"""Tells what a task does now, as in "converting it"."""
Task = Callable[..., Any]
"""Takes a `Stage` and named arguments; returns what JSON can say."""


def serve(tasks: Mapping[str, Task], control: int) -> None:
    """Answers until the last process that may ask has ended.

    Args:
        tasks: By name.
        control: File descriptor of the socket over which callers send the socket of each call.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for watchers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides
    doorway = socket.socket(fileno=control)
    while True:
        _, descriptors, _, _ = socket.recv_fds(doorway, 1, 1)
        if not descriptors:
            return
        if os.fork() == 0:
            doorway.close()
            _end_after(_watch, tasks, socket.socket(fileno=descriptors[0]))
        os.close(descriptors[0])


def _watch(tasks: Mapping[str, Task], caller: socket.socket) -> None:
    """Starts the worker, and ends it where the caller is gone or its time is up; tells how it died."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(caller.makefile("rb").readline())
    limits = Limits(**request["limits"])
    alive, held = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(alive)
        _end_after(_work, tasks, request, limits, caller)
    os.close(held)
    ready, _, _ = select.select([alive, caller.fileno()], [], [], limits.wall_seconds)
    if alive not in ready:
        os.kill(worker, signal.SIGKILL)
    status = os.waitpid(worker, 0)[1]
    if not ready:
        _say(caller, {"slow": True})
    elif os.WIFSIGNALED(status):
        _say(caller, {"died": os.WTERMSIG(status)})


def _work(tasks: Mapping[str, Task], request: Mapping[str, Any], limits: Limits, caller: socket.socket) -> None:
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # libraries print, and abort with a message
        os.dup2(silence, stream)
    os.chdir(request["folder"])  # the caller's, who may have gone elsewhere since this server started
    limits.apply()

    def stage(name: str) -> None:
        _say(caller, {"stage": name})

    try:
        answer = {"value": tasks[request["task"]](stage, **request["arguments"])}
    except DfqError as error:
        answer = {"error": {"kind": type(error).__name__, "text": str(error), "field": error.field}}
    except MemoryError:
        answer = {"memory": True}
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        answer = {"fault": {"kind": type(error).__name__, "where": place, "text": str(error)}}
    _say(caller, answer)


def _say(caller: socket.socket, what: Mapping[str, Any]) -> None:
    # a worker that was killed may have left half a line
    caller.sendall(b"\n" + json.dumps(what).encode() + b"\n")


def _end_after(run: Callable[..., None], *arguments: Any) -> None:
    """Runs it and ends this process, without the clean-up that belongs to the one that it was forked from."""
    try:
        run(*arguments)
    except OSError:
        pass  # the caller is gone
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)
