"""Signals that end the process: raised as Ctrl-C is, and put off for moments that must not be cut in two."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
came: list[int] = []
"""Those that came, the first first."""
written: list[Path] = []
"""Files that have taken their places, which whoever tells of an interruption must not deny."""
kept: set[Path] = set()
"""Folders in which this run keeps how far it is."""


def raise_ending() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt, too; what this process was started to ignore stays so."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _raise)
    sys.unraisablehook = _raise_again


def raise_what_came() -> None:
    """Raises KeyboardInterrupt where a signal came that an import put off, or that a library swallowed."""
    if came:
        raise KeyboardInterrupt(came[0])


def ignore_ending() -> None:
    """From now on what `raise_ending` has raised is ignored: all that is left to do is to end."""
    for number in ENDING:
        if signal.getsignal(number) is _raise:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it Ctrl-C and its like wait: what they raise is raised when the block ends.

    What kills without raising anything, as SIGTERM does outside of the command line, is not held up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread alone
        return
    waiting: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    found = {number: signal.getsignal(number) for number in ENDING}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in waiting[:1]:
            signal.raise_signal(number)


def _raise(number: int, frame: FrameType | None) -> None:
    came.append(number)
    if _imports(frame):  # torch's extensions abort the process where something is raised while they are loaded
        _again(number)
        return
    raise KeyboardInterrupt(number)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    """Has the signal come once more, a moment later."""
    if hasattr(signal, "pthread_kill"):  # which also ends what the main thread waits for
        timer = threading.Timer(0.01, signal.pthread_kill, [threading.main_thread().ident, number])
    else:
        timer = threading.Timer(0.01, _thread.interrupt_main, [number])
    timer.daemon = True
    timer.start()


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Where it was raised inside of a destructor, which Python only prints."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt) and came:
        _again(came[0])
    else:
        sys.__unraisablehook__(unraisable)
