"""What a task may use at most."""

import os
import signal
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one task.

    Attributes:
        memory: Bytes of address space.
        seconds: Of processor time, all threads together.
        wall_seconds: On the clock: what sleeps uses no processor.
        file_size: Bytes of any file that it writes.
        open_files: How many at once.
        processors: That its threads share; on more, threads that wait for each other would use up `seconds`.
    """

    memory: int = 4 * GIB
    seconds: int = 25
    wall_seconds: int = 600
    file_size: int = 4 * GIB
    open_files: int = 128
    processors: int = 2

    def apply(self) -> None:
        """Holds this process to them, for good. Systems that lack a limit go without it."""
        import resource

        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.processors])
        for name, value in (
            ("RLIMIT_AS", self.memory),
            ("RLIMIT_CPU", self.seconds),
            ("RLIMIT_FSIZE", self.file_size),
            ("RLIMIT_NOFILE", self.open_files),
            ("RLIMIT_CORE", 0),
        ):
            kind = getattr(resource, name, None)
            if kind is None:
                continue
            hard = resource.getrlimit(kind)[1]
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (allowed, hard))


def name_of_signal(number: int) -> str:
    """ "SIGFPE"; a number where it has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
