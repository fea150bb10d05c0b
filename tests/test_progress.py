"""Progress: silent where nobody looks or nothing takes long; rate and remaining time otherwise."""

import io

import pytest

from onnxdfq import progress
from onnxdfq.progress import TerminalProgress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_shows_rate_and_remaining_time(seconds: list[float]) -> None:
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    seconds[0] = 10.0
    show(20, 100, "loss 1.5")
    assert terminal.getvalue() == "\r\033[Kcalibrating  20/100  2.0/s  0:40 left  loss 1.5"
    seconds[0] = 50.0
    show(100, 100, "")
    assert terminal.getvalue().endswith("\n")


def test_is_silent_for_what_is_quick(seconds: list[float]) -> None:
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    seconds[0] = 1.9
    show(100, 100, "")
    assert terminal.getvalue() == ""


def test_is_silent_without_a_terminal(seconds: list[float]) -> None:
    stream = io.StringIO()
    show = TerminalProgress("calibrating", stream)
    seconds[0] = 10.0
    show(50, 100, "")
    assert stream.getvalue() == ""


def test_does_not_flicker(seconds: list[float]) -> None:
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    for step in range(100):
        seconds[0] = 5 + step * 0.01
        show(step, 1000, "")
    assert 4 <= terminal.getvalue().count("\r") <= 6


def test_clock() -> None:
    assert (clock(75.2), clock(3.0), clock(float("inf"))) == ("1:15", "0:03", "?")
