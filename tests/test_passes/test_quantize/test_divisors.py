"""What is divided by keeps off its grid where the least of it would become 0."""

import numpy as np
import pytest

from onnxdfq.targets import load_target
from passes.quantize.divisors import divisors_at_zero
from passes.quantize.points import find_quant_points

from ...graphs import build

WEIGHTS = {"w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "shape": np.array([1, 2, 4, 4])}


def found(body: str, *, bits: int = 8, **ranges: tuple[float, float]) -> set[str]:
    powers = {"half": np.array(-0.5, np.float32), "two": np.array(2, np.float32)}
    model = build(f"(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {{ d = Conv(x, w) {body} }}", **WEIGHTS, **powers)
    points = find_quant_points(model, load_target("generic"))
    return set(divisors_at_zero(model, points, ranges, dict.fromkeys(points.activations, bits)))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Div(x, d)", {"d"}),
        ("e = Expand(d, shape) y = Div(x, e)", {"d", "e"}),  # which shares its grid
        ("y = Reciprocal(d)", {"d"}),
        ("y = Log(d)", {"d"}),
        ("y = Pow(d, half)", {"d"}),
        ("y = Pow(d, two)", set()),
        ("y = Div(d, x)", set()),
        ("y = Div(d, two)", set()),
        ("y = Mul(x, d)", set()),
    ],
)
def test_what_must_not_become_0(body: str, expected: set[str]) -> None:
    assert found(body, d=(0.001, 4.0), x=(1.0, 2.0)) == expected


@pytest.mark.parametrize(
    ("least", "greatest", "bits", "near"),
    [
        (0.02, 4.0, 8, False),
        (0.015, 4.0, 8, True),
        (0.015, 4.0, 16, False),
        (-1.0, 4.0, 8, True),
        (-4.0, -0.02, 8, False),
    ],
)
def test_how_near_is_too_near(least: float, greatest: float, bits: int, near: bool) -> None:
    """At 8 bits a threshold of 4 has steps of 1/64; where it is the next power of two, half a step is as much."""
    assert bool(found("y = Div(x, d)", bits=bits, d=(least, greatest), x=(1.0, 2.0))) == near


def test_what_nobody_saw_stays() -> None:
    assert not found("y = Div(x, d)")
