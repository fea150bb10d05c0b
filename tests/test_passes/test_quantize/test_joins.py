"""What stays float at the end of a network: where parts of very different ranges are put together, and nothing else."""

import numpy as np
import pytest

from onnxdfq.targets import load_target
from passes.quantize.joins import joins_apart
from passes.quantize.points import find_quant_points

from ...graphs import build

WEIGHTS = {
    "w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
    "stride": np.array(8, np.float32),
    "wide": np.array([[[[640.0]]]], np.float32),
    "axes": np.array([2, 3]),
}
HEAD = "b = Conv(x, w) l = Conv(x, w) s = Sigmoid(l)"
RANGES = {"b": 640.0, "m": 640.0, "s": 1.0, "l": 9.0, "r": 640.0, "e": 1.0, "t": 640.0}
OUTPUT = "float[N, 4, 4, 4] y"


def kept(body: str, *, outputs: str = OUTPUT, target: str = "ort", bits: int = 8, **ranges: float) -> set[str]:
    model = build(f"(float[N, 2, 4, 4] x) => ({outputs}) {{ {body} }}", **WEIGHTS)
    points = find_quant_points(model, load_target(target))
    joins, nodes = joins_apart(model, points, {**RANGES, **ranges}, dict.fromkeys(points.activations, bits))
    assert bool(joins) == bool(nodes)
    return set(nodes)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{HEAD} y = Concat <axis=1> (b, s)", {"Sigmoid_s", "Concat_y"}),
        (f"{HEAD} m = Mul(b, stride) y = Concat <axis=1> (m, s)", {"Mul_m", "Sigmoid_s", "Concat_y"}),
        (f"{HEAD} c = Concat <axis=1> (b, s) y = Transpose(c)", {"Sigmoid_s", "Concat_c", "Transpose_y"}),
        # of the same range
        (f"{HEAD} t = Tanh(b) y = Concat <axis=1> (t, b)", set()),
        # a layer reads what is put together, which is another matter
        (f"{HEAD} c = Concat <axis=1> (b, s) i = Add(c, c) p = GlobalAveragePool(i) y = Add(p, i)", set()),
        # a Relu is computed along with the layer before, which needs its grid
        (
            "b = Conv(x, w) r = Relu(b) l = Conv(x, w) s = Sigmoid(l) y = Concat <axis=1> (r, s)",
            {"Sigmoid_s", "Concat_y"},
        ),
        # another output reads the scores as well
        (f"{HEAD} e = Mul(s, s) y = Concat <axis=1> (b, e)", {"Sigmoid_s", "Mul_e", "Concat_y"}),
    ],
)
def test_the_end_of_the_network_stays_float(body: str, expected: set[str]) -> None:
    assert kept(body) == expected


def test_what_else_is_computed_of_it_stays_float_too() -> None:
    body = f"{HEAD} y = Concat <axis=1> (b, s) z = Neg(y)"
    assert kept(body, outputs=f"{OUTPUT}, float[N, 4, 4, 4] z") == {"Sigmoid_s", "Concat_y", "Neg_z"}


def test_sixteen_bits_hold_both() -> None:
    body = f"{HEAD} y = Concat <axis=1> (b, s)"
    assert not kept(body, bits=16)
    assert kept(body, bits=16, s=0.1)
    assert kept(body, b=15.9) == set()
    assert kept(body, b=16.1)


def test_parts_that_nobody_saw_or_that_are_zero_do_not_count() -> None:
    assert not kept(f"{HEAD} y = Concat <axis=1> (b, s)", s=0.0)


def test_constants_count() -> None:
    body = "l = Conv(x, w) p = GlobalAveragePool(l) s = Sigmoid(p) y = Concat <axis=1> (s, wide)"
    assert kept(body, outputs="float[1, 3, 1, 1] y") == {"Sigmoid_s", "Concat_y"}


def test_a_sum_that_the_convolution_adds_itself_keeps_its_grid() -> None:
    body = "r = Relu(x) a = Conv(r, w) m = Add(a, r) l = Conv(r, w) s = Sigmoid(l) y = Concat <axis=1> (m, s)"
    assert kept(body, target="openvino") == {"Sigmoid_s", "Concat_y"}
    assert kept(body) == {"Add_m", "Sigmoid_s", "Concat_y"}


def test_the_ranges_are_told_by_part() -> None:
    model = build(f"(float[N, 2, 4, 4] x) => ({OUTPUT}) {{ {HEAD} y = Concat <axis=1> (b, s) }}", **WEIGHTS)
    points = find_quant_points(model, load_target("ort"))
    joins, _ = joins_apart(model, points, RANGES, dict.fromkeys(points.activations, 8))
    assert [(join.node, dict(join.ranges)) for join in joins] == [("Concat_y", {"b": 640.0, "s": 1.0})]
    without = {name: 8 for name in points.activations if name != "y"}  # somebody decided its grid
    assert joins_apart(model, points, RANGES, without) == ([], frozenset())
