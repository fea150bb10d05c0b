"""Which of a test's many cases run by default: a few that stand for all; the others wait for `make test-slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def all_but(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters of a test: those of `quick` as they are, all others slow."""
    return [case if case in quick else slow(case) for case in cases]


def slow(case: Any) -> Any:
    """A parameter, or a tuple of several, that is slow."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
