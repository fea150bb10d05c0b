"""`compress --require`: what it asks for, and whom it refuses."""

from typing import Any

import pytest

from onnxdfq.errors import InputError
from onnxdfq.report.requirement import read_requirement, unmet


@pytest.mark.parametrize(("text", "least"), [("sqnr=20", 20.0), (" sqnr = 7.5", 7.5), ("sqnr=-3", -3.0)])
def test_what_is_asked_for(text: str, least: float) -> None:
    assert read_requirement(text) == least


@pytest.mark.parametrize(
    "text", ["", "20", "sqnr", "sqnr=", "sqnr=good", "top1=0.9", "sqnr=20=30", "sqnr=nan", "sqnr=inf"]
)
def test_nonsense(text: str) -> None:
    with pytest.raises(InputError, match=f"--require {text!r} is not sqnr=DB, such as sqnr=20"):
        read_requirement(text)


@pytest.mark.parametrize(
    ("metrics", "met"),
    [
        ({"sqnr_db_held_back": 20.0}, True),
        ({"sqnr_db_held_back": 19.94}, False),
        ({"sqnr_db_held_back": 21.0, "sqnr_db_images": 3.0}, True),
        ({"sqnr_db_held_back": 3.0, "sqnr_db_images": 21.0}, False),
        ({"sqnr_db_images": 3.0}, False),  # too few of the user's own to hold any back
        ({"sqnr_db_held_back": None}, True),  # no error at all
        ({}, True),
    ],
)
def test_the_inputs_that_decided_nothing_are_what_counts(metrics: dict[str, Any], met: bool) -> None:
    found = unmet(20.0, {"ort": {"output": "q.onnx", **metrics}})
    assert found == ([] if met else [f"--require sqnr=20 is not met by q.onnx: it has {min(metrics.values()):.1f} dB."])


def test_each_file_that_is_worse_is_named() -> None:
    files = {
        name: {"output": f"{name}.onnx", "sqnr_db_held_back": level}
        for name, level in (("a", 3.0), ("b", 30.0), ("c", 7.0))
    }
    assert [sentence.split()[6] for sentence in unmet(20.0, files)] == ["a.onnx:", "c.onnx:"]
