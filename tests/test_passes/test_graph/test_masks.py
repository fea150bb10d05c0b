"""Where masks of attention lie in a graph, and which rows of scores can be masked whole."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.graph.masks import is_never_masked_whole, masked_values
from passes.quantize.points import find_quant_points

from ...graphs import build

LEAST = np.finfo(np.float32).min
TRIANGLE = np.tri(4, dtype=bool)
CONSTANTS = {
    "zero": np.array(0, "f4"),
    "one": np.array(1, "f4"),
    "hundred": np.array(100, "f4"),
    "least": np.array(LEAST, "f4"),
    "infinite": np.array(-np.inf, "f4"),
    "ten_thousand": np.array(-1e4, "f4"),
    "causal": np.where(TRIANGLE, 0, LEAST).astype("f4"),
    "holes": np.where(TRIANGLE, 0, -np.inf).astype("f4"),
    "rest": np.where(TRIANGLE, -np.inf, 0).astype("f4"),
    "nothing": np.where(TRIANGLE & np.array([[True], [True], [False], [True]]), 0, -np.inf).astype("f4"),
    "windows": np.where(TRIANGLE, 0, -100).astype("f4"),
    "positions": np.linspace(-3, 3, 16, dtype=np.float32).reshape(4, 4),
    "triangle": TRIANGLE,
}
ATTENTION = """(float[N,4,3] q, float[N,4,3] k, float[N,4,3] v, int64[N,1,4] seen) => (float[N,4,3] y) {{
    t = Transpose <perm=[0,2,1]> (k)
    s = MatMul (q, t)
    {mask}
    w = Softmax <axis=-1> (m)
    {behind}
}}"""
PLAIN, GUARDED = "y = MatMul (w, v)", "n = IsNaN (w) g = Where (n, zero, w) y = MatMul (g, v)"


def attention(mask: str, behind: str = PLAIN) -> ir.Model:
    return build(ATTENTION.format(mask=mask, behind=behind), **CONSTANTS)


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        ("m = Add (s, causal)", {"causal", "m"}),
        ("m = Add (holes, s)", {"holes", "m"}),
        ("m = Add (s, windows)", {"windows", "m"}),
        ("m = Where (triangle, s, least)", {"least", "m"}),
        ("b = Cast <to=9> (seen) a = Where (b, zero, infinite) m = Add (s, a)", {"infinite", "a", "m"}),
        (
            "f = Cast <to=1> (seen) r = Sub (one, f) a = Mul (r, ten_thousand) m = Add (s, a)",
            {"f", "r", "ten_thousand", "a", "m"},
        ),
        ("m = Add (s, positions)", set()),
        ("m = Mul (s, hundred)", set()),  # a temperature
    ],
)
def test_a_mask_and_what_it_masks_stay_float(mask: str, found: set[str]) -> None:
    model = attention(mask)
    assert {value.name for value in masked_values(model.graph)} == found
    points = find_quant_points(model, load_target("ort"))
    assert not found & {*points.activations, *points.same_as, *points.constants}
    assert {"s", "w"} <= {*points.activations}


def test_what_is_asked_for_nan_stays_float() -> None:
    model = attention("b = Cast <to=9> (seen) a = Where (b, zero, infinite) m = Add (s, a)", GUARDED)
    points = find_quant_points(model, load_target("ort"))
    assert not {"w"} & {*points.activations} and "g" in points.activations


def test_low_numbers_that_no_softmax_reads_are_none() -> None:
    model = build("(float[N,4,4] x) => (float[N,4,4] y) { y = Add (x, causal) }", **CONSTANTS)
    assert not masked_values(model.graph)


@pytest.mark.parametrize(
    ("mask", "never"),
    [
        ("m = Mul (s, hundred)", True),
        ("m = Add (s, holes)", True),
        ("m = Where (triangle, s, least)", True),
        ("a = Mul (s, hundred) m = Add (a, causal)", True),
        ("m = Add (s, nothing)", False),
        ("m = Where (triangle, s, infinite)", False),
        ("a = Add (s, rest) m = Add (a, holes)", False),
        ("b = Cast <to=9> (seen) a = Where (b, zero, infinite) m = Add (s, a)", False),
        ("m = Log (s)", False),
    ],
)
def test_the_check_for_nan_goes_where_nothing_is_masked_whole(mask: str, never: bool) -> None:
    model = attention(mask, GUARDED)
    (softmax,) = (node for node in model.graph if node.op_type == "Softmax")
    assert softmax.inputs[0] is not None and is_never_masked_whole(softmax.inputs[0]) == never
    Canonicalize()(model)
    assert ("IsNaN" in [node.op_type for node in model.graph]) != never
