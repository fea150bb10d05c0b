"""Short messages between processes, at the place where they meet: who is there, who failed, who hangs."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from onnxdfq.errors import WorkerError
from onnxdfq.workers.place import TIMEOUT, Place

if TYPE_CHECKING:
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

LOOK_EVERY_S = 0.5  # at signs of life, while waiting
LONGEST_NAP_S = 0.02
FAILED, LEFT = "failed", "left"
GOODBYE_S = 5.0  # at most, that whoever keeps the place waits for the others to leave it


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What ended the run. text: the sentence. code: what all end with."""

    text: str
    code: int


class Messages:
    """Those of one attempt.

    Args:
        place: Of this process.

    Raises:
        WorkerError: Nobody is at the place where all meet.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        # What torch's libraries log of connections, with a stack, is told in one sentence here.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        keeps = place.rank == 0 and not place.hosted
        if not keeps:
            _reach(place)
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        self._keeps, self._round, self._beaten = keeps, 0, 0.0
        try:
            store = TCPStore(
                place.address,
                place.port,
                place.size,
                keeps,
                timeout=timedelta(seconds=place.timeout),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise WorkerError(
                f"{place.address}:{place.port} cannot be taken or reached; name another port (MASTER_PORT)."
            ) from error
        self._store = PrefixStore(f"onnxdfq/{place.attempt}", store)
        self._store.set(f"host/{place.rank}", place.host)

    @property
    def store(self) -> PrefixStore:
        """Where processes that exchange tensors find one another."""
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        return PrefixStore("tensors", self._store)

    def round(self, text: str) -> list[str]:
        """What each said in this round, by rank. Raises WorkerError: one failed, hangs, or never came."""
        number, self._round = self._round, self._round + 1
        with self._connected():
            self._store.set(f"round/{number}/{self.place.rank}", text)
            self._await(f"round/{number}", range(self.place.size))
            self._look_for_failure()  # of a process that was given up, this one perhaps
            found = [self._store.get(f"round/{number}/{rank}").decode() for rank in range(self.place.size)]
            if number > 1:  # whoever is in this round has read all of the last but one
                self._store.delete_key(f"round/{number - 2}/{self.place.rank}")
        return found

    def await_first(self) -> None:
        """Returns once rank 0 is in its first round. Raises WorkerError as `round` does."""
        with self._connected():
            self._await("round/0", range(1))

    def wait_for(self, happened: Callable[[], bool], look: Callable[[float], None] = lambda _: None) -> None:
        """Returns once it has happened. Raises WorkerError: one of the others failed meanwhile.

        Args:
            happened: Asked again and again.
            look: Called now and then, with the time; may raise.
        """
        nap, looked = 1e-4, time.monotonic()
        while not happened():
            time.sleep(nap)
            nap = min(2 * nap, LONGEST_NAP_S)
            if (now := time.monotonic()) - looked >= LOOK_EVERY_S:
                looked = now
                self._look_for_failure()
                self.beat()
                look(now)

    def beat(self) -> None:
        """Gives a sign of life, where the last is not of just now. Raises WorkerError: rank 0 is gone."""
        if (now := time.monotonic()) - self._beaten >= LOOK_EVERY_S:
            self._beaten = now
            with self._connected():
                self._store.add(f"beat/{self.place.rank}", 1)

    def failure(self) -> Failure | None:
        """What ended the run; None where nothing did, or the place where all meet is gone."""
        try:
            if not self._store.check([FAILED]):
                return None
            return Failure(**json.loads(self._store.get(FAILED)))
        except RuntimeError:
            return None

    def fail(self, failure: Failure) -> bool:
        """Tells the others what ends the run. Whether this process is the one to print it: the first that failed."""
        try:
            if self._store.add("failures", 1) > 1:
                return False
            self._store.set(FAILED, json.dumps(vars(failure)))
        except RuntimeError:  # nobody is left to tell
            return True
        return True

    def leave(self) -> None:
        """The last that this process does here. Whoever keeps the place waits a moment, until all others have left."""
        try:
            left = self._store.add(LEFT, 1)
            end = time.monotonic() + GOODBYE_S
            while self._keeps and left < self.place.size and time.monotonic() < end:
                time.sleep(LONGEST_NAP_S)
                left = self._store.add(LEFT, 0)
        except RuntimeError:
            return

    def _await(self, topic: str, ranks: range) -> None:
        missing, signs = list(ranks), dict.fromkeys(ranks, (-1, time.monotonic()))

        def arrived() -> bool:
            missing[:] = [rank for rank in missing if not self._store.check([f"{topic}/{rank}"])]
            return not missing

        def look_for_signs(now: float) -> None:
            for rank in missing:
                count = self._store.add(f"beat/{rank}", 0)
                if count != signs[rank][0]:
                    signs[rank] = (count, now)
                elif now - signs[rank][1] > self.place.timeout:
                    raise self._hangs(rank)

        self.wait_for(arrived, look_for_signs)

    def _look_for_failure(self) -> None:
        if (failure := self.failure()) is not None:
            raise WorkerError(failure.text, exit_code=failure.code)

    def _hangs(self, rank: int) -> WorkerError:
        came = self._store.check([f"host/{rank}"])
        where = f" ({self._store.get(f'host/{rank}').decode()})" if came else ""
        what = "has given no sign of life" if came else "has not come"
        return WorkerError(
            f"Rank {rank} of {self.place.size}{where} {what} for {self.place.timeout:.0f} s; look at its machine and "
            f"its log, or let {TIMEOUT} name more seconds."
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        from torch.distributed import DistError

        try:
            yield
        except DistError as error:
            raise WorkerError(f"{self.place.name} has lost the connection to rank 0.") from error


def _reach(place: Place) -> None:
    """Returns once somebody listens where all meet; torch itself would log each attempt."""

    def listens() -> bool:
        try:
            socket.create_connection((place.address, place.port), timeout=LOOK_EVERY_S).close()
        except OSError:
            return False
        return True

    if not waited_for(listens, place.timeout):
        raise WorkerError(
            f"{place.name} finds nobody at {place.address}:{place.port} for {place.timeout:.0f} s; look at rank 0."
        )


def waited_for(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether it happens within that time, looked at again and again."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(LONGEST_NAP_S)
    return True
