"""The check of edits: equal up to rounding, rows side by side, the first row alone."""

from typing import Any

import numpy as np
import pytest

from onnxdfq.model_file.trial import first_row, first_that_runs, random_feeds, run, same, stacked, try_out

from ..graphs import build


def rows(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("found", "expected", "equal"),
    [
        (rows(2, 3), rows(2, 3), True),
        (rows(2, 3) * (1 + 5e-4), rows(2, 3), True),
        (rows(2, 3) + 0.1, rows(2, 3), False),
        (rows(2, 3), rows(3, 2), False),
        (rows(2, 3).astype(np.float64), rows(2, 3), False),
        (np.array([1, 2]), np.array([1, 2]), True),
        (np.array([1, 2]), np.array([1, 3]), False),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True),
        (np.array([np.inf, 1.0]), np.array([np.inf, 1.0]), True),
        (np.array([np.inf, 1.0]), np.array([1.0, 1.0]), False),
        (np.float16([1.005]), np.float16([1.0]), True),  # half as many digits
        (np.zeros((0, 4)), np.zeros((0, 4)), True),
    ],
)
def test_equal_up_to_rounding(found: np.ndarray, expected: np.ndarray, equal: bool) -> None:
    assert same([[found]], [[expected]]) == equal


@pytest.mark.parametrize(
    ("found", "parts", "holds"),
    [
        (rows(4, 3), [rows(4, 3)[:2], rows(4, 3)[2:]], True),
        (rows(3, 4), [rows(3, 4)[:, :2], rows(3, 4)[:, 2:]], True),  # along any axis
        (rows(4, 3), [rows(4, 3)[2:], rows(4, 3)[:2]], False),
        (rows(2, 3), [rows(2, 3)] * 2, True),  # a constant
        (rows(2, 3), [rows(2, 3), rows(2, 3) + 1], False),
        (np.float32(3), [np.float32(3), np.float32(3)], True),
    ],
)
def test_runs_side_by_side(found: Any, parts: list[Any], holds: bool) -> None:
    assert stacked(np.asarray(found), list(map(np.asarray, parts))) == holds


@pytest.mark.parametrize(
    ("found", "whole", "holds"),
    [
        (rows(4, 3)[:1], rows(4, 3), True),
        (rows(3, 4)[:, :1], rows(3, 4), True),
        (rows(4, 3)[1:2], rows(4, 3), False),
        (rows(2, 3), rows(2, 3), True),
        (rows(4, 3)[0], rows(4, 3), False),
    ],
)
def test_the_first_row_alone(found: np.ndarray, whole: np.ndarray, holds: bool) -> None:
    assert first_row(found, whole) == holds


TRACED = "(float[N,4] x, float s) => (float[2,8] y) { a = Add(x, s) y = Reshape(a, t) }"


def test_the_first_usual_batch_that_runs() -> None:
    """A free batch in the file, and 16 numbers in the graph: 4 samples."""
    trial = try_out(build(TRACED, t=np.array([2, 8])), 3)
    assert trial is not None and trial.batch == 4
    assert len(trial.feeds) == len(trial.outputs) == 3
    for feeds, (y,) in zip(trial.feeds, trial.outputs, strict=True):
        np.testing.assert_array_equal(y, (feeds["x"] + feeds["s"]).reshape(2, 8))
    assert not np.array_equal(trial.feeds[0]["x"], trial.feeds[1]["x"])
    assert trial.feeds[0]["s"] == trial.feeds[1]["s"]


def test_a_model_that_runtime_refuses_has_no_outputs() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    next(iter(model.graph)).op_type = "Mystery"
    assert try_out(model, 1) is None
    assert run(model, random_feeds(model, 1, 1)) is None
    assert first_that_runs(model, [{"x": (1, 4)}]) is None


def test_the_first_shapes_at_which_a_model_runs() -> None:
    model = build(
        "(float[N,c] x, float[N,c] z) => (float[2,8] y) { a = Add(x, z) y = Reshape(a, t) }", t=np.array([2, 8])
    )
    shapes = [{"x": (1, size), "z": (1, other)} for size, other in ((8, 8), (16, 8), (16, 16))]
    assert first_that_runs(model, shapes) == 2
    assert first_that_runs(model, shapes[:2]) is None


def test_outputs_of_other_shapes_from_run_to_run_are_not_stacked() -> None:
    """Branches of an If may differ in shape, and which one runs depends on the numbers."""
    small, large, one = np.ones((1, 4, 4, 4)), np.ones((1, 4, 6, 6)), np.ones(4)
    assert not stacked(small, [small, large])
    assert not stacked(small, [small, one])
    assert stacked(np.ones((2, 4, 6, 6)), [large, large])
