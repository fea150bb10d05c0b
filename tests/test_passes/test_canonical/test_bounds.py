"""Max and Min with one number become Clip or Relu."""

import numpy as np
import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import f32, rand


@pytest.mark.parametrize(
    ("text", "weights", "wanted"),
    [
        ("y = Max(x, c)", {"c": f32(0)}, {"Relu": 1}),
        ("y = Max(c, x)", {"c": f32([0])}, {"Relu": 1}),
        ("y = Max(x, c)", {"c": f32(-0.5)}, {"Clip": 1}),
        ("y = Min(x, c)", {"c": f32([[[1.5]]])}, {"Clip": 1}),
        ("y = Min(c, x)", {"c": f32(0)}, {"Clip": 1}),
        ("h = Max(x, c) y = Min(h, d)", {"c": f32(-0.5), "d": f32(0.5)}, {"Clip": 2}),
    ],
)
def test_one_number(build, assert_same, operators, text, weights, wanted):
    model = build(f"(float[N,3,4] x) => (float[N,3,4] y) {{ {text} }}", **weights)
    assert_same(model, Canonicalize())
    assert operators(model) == wanted


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("(float[N,3,4] x) => (float[N,3,4] y) { y = Max(x, c) }", {"c": rand(4)}),
        ("(float[N,3,4] x) => (float[N,3,4] y) { y = Max(x, c, c) }", {"c": f32(1)}),
        ("(float[N,3,4] x) => (float[N,3,4] y) { y = Min(x) }", {}),
        ("(float[N,3,4] x, float z) => (float[N,3,4] y) { y = Max(x, z) }", {}),
        ("(float[N,3,4] x) => (float[N,3,4] y) { y = Max(x, c) }", {"c": f32(-np.inf)}),
        ("(float[4] x) => (float[1,4] y) { y = Max(x, c) }", {"c": f32([[1]])}),  # adds an axis
        ("(int64[N,3] x) => (int64[N,3] y) { y = Max(x, c) }", {"c": np.array(1)}),
        ("(double[N,3] x) => (double[N,3] y) { y = Max(x, c) }", {"c": np.array(1.0)}),
    ],
)
def test_what_is_no_bound_stays(build, operators, text, weights):
    model = build(text, **weights)
    Canonicalize()(model)
    assert not {"Clip", "Relu"} & operators(model).keys()
