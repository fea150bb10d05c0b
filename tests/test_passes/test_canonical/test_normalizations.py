"""LayerNormalization in nine operators becomes one; what is none stays."""

import pytest

from passes.canonical.canonicalize import Canonicalize

from ...graphs import build
from .conftest import f32, i64, only, rand

HEAD = "m = ReduceMean (x, axes) c = Sub (x, m) "
SQUARES = {"Pow": "s = Pow (c, two) ", "Mul": "s = Mul (c, c) "}
TAIL = "v = ReduceMean (s, axes) e = Add (v, eps) r = Sqrt (e) n = Div (c, r) "
ENDS = {"plain": "y = Identity (n)", "scaled": "y = Mul (n, w)", "whole": "g = Mul (n, w) y = Add (b, g)"}


def model_of(body, *, axes=-1):
    text = f"(float[N,5,6] x) => (float[N,5,6] y) {{ {body} }}"
    return build(text, axes=i64(axes), two=f32(2), eps=f32(1e-3), w=rand(6), b=rand(1, 6))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("axis", [-1, 2])
def test_all_forms(axis, square, end, assert_same):
    model = model_of(HEAD + SQUARES[square] + TAIL + ENDS[end], axes=axis)
    assert_same(model, Canonicalize())
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]
    assert len(only(model, "LayerNormalization").inputs) == (3 if end == "whole" else 2)


def test_what_is_read_in_between_stays(assert_same):
    model = model_of(HEAD + SQUARES["Pow"] + TAIL + "g = Mul (n, w) y = Add (g, n)")
    assert_same(model, Canonicalize())
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "Mul", "Add"]


@pytest.mark.parametrize(
    "body",
    [
        HEAD + "s = Pow (x, two) " + TAIL + ENDS["plain"],  # not of what is centred
        HEAD + SQUARES["Pow"] + TAIL.replace("Div (c, r)", "Div (x, r)") + ENDS["plain"],
        HEAD + SQUARES["Pow"] + TAIL.replace("Sqrt", "Exp") + ENDS["plain"],
    ],
)
def test_what_is_none(body, assert_same):
    model = model_of(body)
    assert_same(model, Canonicalize())
    assert not any(node.op_type == "LayerNormalization" for node in model.graph)


def test_over_another_axis_it_is_none(assert_same):
    model = model_of(HEAD + SQUARES["Pow"] + TAIL + ENDS["plain"], axes=1)
    assert_same(model, Canonicalize())
    assert not any(node.op_type == "LayerNormalization" for node in model.graph)
