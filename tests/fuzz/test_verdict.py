"""What counts as a fault, and that a case is the same wherever it is made."""

from pathlib import Path
from typing import Any

import pytest

from .cases import FAMILIES, make_case
from .fork import Limits, Outcome, run
from .verdict import faults, normalised, place

SENTENCE = "onnxdfq: model.onnx is not an ONNX model; give the .onnx file that an exporter wrote.\n"


def outcome(**given: Any) -> Outcome:
    return Outcome(**{"code": 2, "stdout": "", "stderr": SENTENCE, "seconds": 0.1, "memory": 2**28} | given)


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({}, ["lint", "m"]),
        ({"stderr": "note: noise is fed.\n" + SENTENCE}, ["lint", "m"]),
        ({"stderr": "Usage: onnxdfq lint\n\nError: Missing argument 'MODEL'.\n"}, ["lint"]),
        (
            {"code": 1, "stderr": "onnxdfq: --require exact is not met by Conv c.\n"},
            ["lint", "m", "--require", "exact"],
        ),
        ({"code": 0, "stdout": '{"a": 1}\n', "stderr": ""}, ["lint", "m", "--json"]),
        ({"code": 0, "stderr": "", "left": ("out.onnx",)}, ["compress", "m", "-o", "out.onnx"]),
    ],
)
def test_a_right_end_is_no_fault(given: dict[str, Any], arguments: list[str]) -> None:
    assert faults(outcome(**given), arguments, ("out.onnx",)) == []


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (
            {"code": 1, "stderr": "onnxdfq: this is a fault of onnxdfq, please report it: KeyError in a.py:3: 'x'"},
            "fault",
        ),
        ({"code": 1, "stderr": "Traceback (most recent call last):\n  ...\nKeyError: 3"}, "traceback"),
        ({"code": 1}, "exit 1"),
        ({"code": 130}, "exit 130"),
        ({"code": -8}, "signal 8"),
        ({"code": -24, "over_time": True}, "time"),
        ({"memory": 5 * 2**30}, "memory"),
        ({"stderr": ""}, "no sentence"),
        ({"stderr": SENTENCE + SENTENCE}, "no sentence"),
        ({"stderr": "warning: something\n" + SENTENCE}, "no sentence"),
        ({"stderr": "onnxdfq: " + "x" * 4000}, "no sentence"),
        ({"left": ("out.onnx",)}, "left behind"),
        ({"code": 0, "left": ("tmp:onnxdfq-1",)}, "left behind"),
        ({"orphans": 1}, "process left"),
        ({"code": 0, "stderr": "", "stdout": "a\x1b[31m"}, "raw text"),
        ({"code": 0, "stderr": "", "stdout": "a\udcff"}, "raw text"),
        ({"code": 0, "stderr": "", "stdout": "name a\nFORGED"}, "raw text"),
        ({"code": 0, "stderr": "", "stdout": '{"a": NaN}'}, "json"),
    ],
)
def test_a_wrong_end_is_a_fault(given: dict[str, Any], kind: str) -> None:
    assert kind in [fault.kind for fault in faults(outcome(**given), ["lint", "m", "--json"], ("out.onnx",))]


def test_causes_do_not_differ_by_names_and_numbers() -> None:
    assert normalised("tensor 'a' of /tmp/x/m.onnx has 12") == normalised("tensor 'bc' of /y/m.onnx has 345")
    stack = 'File "/r/onnxdfq/a.py", line 3, in f\n  File "/site-packages/torch/passes/b.py", line 9, in g\n'
    assert place(stack) == "onnxdfq/a.py:3 f"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_case_is_made_of_two_numbers_alone(family: str) -> None:
    number = next(number for number in range(1000) if make_case(7, number).family == family)
    case = make_case(7, number)
    assert case == make_case(7, number)
    assert case != make_case(8, number)
    assert not any("\0" in argument for argument in case.arguments)


def _writes() -> None:
    Path("left.txt").write_text("x")
    raise SystemExit(2)


def _sleeps() -> None:
    import time

    time.sleep(60)


def _allocates() -> None:
    bytes(2**31)


def _leaves_a_process() -> None:
    import subprocess

    subprocess.Popen(["sleep", "60"], start_new_session=True)


def test_a_fork_is_watched(tmp_path: Path) -> None:
    limits = Limits(seconds=30.0, memory=2**30)
    found = run(_writes, tmp_path, limits)
    assert (found.code, found.left, found.orphans) == (2, ("left.txt",), 0)
    found = run(_sleeps, tmp_path, Limits(seconds=1.0))
    assert found.over_time and "_sleeps" in found.trace
    found = run(_allocates, tmp_path, limits)
    assert found.code == 1 and "MemoryError" in found.stderr
    assert run(_leaves_a_process, tmp_path, limits).orphans == 1
