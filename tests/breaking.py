"""Runs that are broken off at a step, and how many steps others take: for tests of what goes on from a work folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def broken_off(kind: Any, name: str, *, at: int) -> Iterator[None]:
    """The block has to reach call number `at`, counted from 0, of a method of `kind`: a Ctrl-C comes there."""
    own, count = getattr(kind, name), 0

    def breaks(self: Any, *arguments: Any) -> Any:
        nonlocal count
        if count == at:
            raise KeyboardInterrupt
        count += 1
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, name, breaks)
        yield


@contextmanager
def counted(kind: Any, name: str) -> Iterator[list[str]]:
    """The calls of a method of `kind` in the block: an entry each."""
    own, calls = getattr(kind, name), list[str]()

    def counts(self: Any, *arguments: Any) -> Any:
        calls.append(name)
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, name, counts)
        yield calls
