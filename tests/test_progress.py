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


def test_shows_rate_and_remaining_time_in_a_terminal(seconds: list[float]) -> None:
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    seconds[0] = 10.0
    show(20, 100, "loss 1.5")
    drawn = terminal.getvalue().split("\r")[-1]
    assert drawn.startswith("calibrating  20/100  ") and " left " in drawn and "loss 1.5" in drawn
    show(100, 100, "")
    assert terminal.getvalue().endswith("\n")


def test_is_silent_for_what_is_quick(seconds: list[float]) -> None:
    for stream in (Terminal(), io.StringIO()):
        show = TerminalProgress("calibrating", stream)
        seconds[0] += 1.9
        show(100, 100, "")
        assert stream.getvalue() == ""


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(seconds: list[float]) -> None:
    stream = io.StringIO()
    show = TerminalProgress("calibrating", stream)
    for second in range(1, 26):
        seconds[0] = float(second)
        show(4 * second, 100, "loss 1.5")
    assert stream.getvalue().splitlines() == [
        "calibrating  40/100  4.0/s  0:15 left  loss 1.5",
        "calibrating  80/100  4.0/s  0:05 left  loss 1.5",
        "calibrating  100/100  4.0/s  0:00 left  loss 1.5",
    ]


def test_what_ends_before_its_first_line_leaves_no_line(seconds: list[float]) -> None:
    stream = io.StringIO()
    show = TerminalProgress("calibrating", stream)
    seconds[0] = 9.0
    show(100, 100, "")
    assert stream.getvalue() == ""


def test_does_not_flicker(seconds: list[float]) -> None:
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    seconds[0] = 5.0
    for step in range(1, 100):
        show(step, 1000, "")
    assert terminal.getvalue().count("\r") <= 4


def test_nothing_is_coloured(seconds: list[float]) -> None:
    """So NO_COLOR needs no answer."""
    terminal = Terminal()
    show = TerminalProgress("calibrating", terminal)
    seconds[0] = 5.0
    show(1, 2, "")
    assert "\x1b[3" not in terminal.getvalue()


def test_clock() -> None:
    assert (clock(75.2), clock(3.0), clock(float("inf"))) == ("1:15", "0:03", "?")
