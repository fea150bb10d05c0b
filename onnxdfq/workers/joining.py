"""A run's way in and out of several processes: whoever fails ends all, and one of them says why."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from typing import TextIO

from onnxdfq.errors import DfqError, WorkerError
from onnxdfq.workers.messages import Failure, Messages, waited_for
from onnxdfq.workers.place import Place
from onnxdfq.workers.workers import ALONE, Released, Workers

LINGER_S = 3.0  # so long another rank lets the first tell what went wrong, which most often went wrong for all
_streams: list[tuple[TextIO, TextIO]] = []


def is_other(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several processes, and not the first."""
    rank, size = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    return rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size)


def silence_others(environment: Mapping[str, str]) -> None:
    """Has all but rank 0 print nothing from now on."""
    if is_other(environment):
        _silence()


class _Nowhere(StringIO):
    """Takes text, and keeps none."""

    def write(self, text: str, /) -> int:
        return len(text)


@contextmanager
def joined(environment: Mapping[str, str] | None = None) -> Iterator[Workers]:
    """This process among those that were started with it; `ALONE` where there are no others.

    Of all that fail the first prints why, whichever rank it is, and the others end silently with the same exit code.

    Raises:
        InputError: The environment does not tell which one it is.
        WorkerError: The others cannot be reached.
    """
    place = Place.read(os.environ if environment is None else environment)
    if place is None:
        yield ALONE
        return
    from onnxdfq.workers.several import meet

    workers, messages = meet(place)
    try:
        yield workers
    except Released:
        pass
    except (Exception, KeyboardInterrupt) as error:
        _tell(error, messages)
        if isinstance(error, DfqError) and place.rank and not isinstance(error, WorkerError):
            raise WorkerError(f"{place.name}: {error}", exit_code=error.exit_code, field=error.field) from error
        raise
    finally:
        messages.leave()
        workers.close()


def _tell(error: BaseException, messages: Messages) -> None:
    """Tells the others, and lets this process print what it raises, or not."""
    known = messages.failure()
    if known is None and isinstance(error, KeyboardInterrupt):
        return  # which whoever started all sends to all
    if messages.place.rank:
        waited_for(lambda: messages.failure() is not None, LINGER_S)
    code = getattr(error, "exit_code", 1)
    if known is None and messages.fail(Failure(text=str(error), code=code)):
        _speak()
    else:
        _silence()


def _silence() -> None:
    if not _streams:
        _streams.append((sys.stdout, sys.stderr))
        sys.stdout = sys.stderr = _Nowhere()


def _speak() -> None:
    if _streams:
        sys.stdout, sys.stderr = _streams.pop()
