"""Canonicalize, one test per rewrite by its number: activations written as arithmetic."""

import numpy as np
import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import f32, only

GELUS = [
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(v, p) y = Mul(m, half)",
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(half, p) y = Mul(v, m)",
    "s = Mul(v, r12) e = Erf(s) p = Add(one, e) h = Mul(v, half) y = Mul(h, p)",
    "s = Mul(r12, v) e = Erf(s) p = Add(e, one) h = Div(v, two) y = Mul(p, h)",
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(p, v) y = Div(m, two)",
]


@pytest.mark.parametrize("chain", GELUS)
def test_11_gelu(build, assert_same, operators, chain):
    numbers = {"r2": 2**0.5, "r12": 0.5**0.5, "one": 1, "half": 0.5, "two": 2}
    weights = {name: f32(number) for name, number in numbers.items() if name in chain}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + chain + " }", **weights)
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"Neg": 1, "Gelu": 1}
    assert only(model, "Gelu").outputs[0].name == "y"


TANHS = [
    "p = Pow(v, three) c = Mul(p, cubic) a = Add(v, c) s = Mul(a, root) t = Tanh(s) u = Add(t, one) h = Mul(v, half) "
    "y = Mul(h, u)",
    "q = Mul(v, v) p = Mul(q, v) c = Mul(cubic, p) a = Add(c, v) s = Mul(root, a) t = Tanh(s) u = Add(one, t) "
    "m = Mul(v, u) y = Mul(half, m)",
]


@pytest.mark.parametrize("cubic", [0.044715, 0.05])
@pytest.mark.parametrize("chain", TANHS)
def test_11_gelu_by_tanh(build, assert_same, operators, chain, cubic):
    numbers = {"cubic": cubic, "root": (2 / np.pi) ** 0.5, "one": 1, "half": 0.5, "three": 3}
    weights = {name: f32(number) for name, number in numbers.items() if name in chain}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + chain + " }", **weights)
    if cubic != 0.044715:
        Canonicalize()(model)
        assert "Gelu" not in operators(model)
    else:
        assert_same(model, Canonicalize(), rtol=1e-5)
        assert operators(model) == {"Neg": 1, "Gelu": 1}
        assert only(model, "Gelu").attributes.get_string("approximate", "none") == "tanh"


@pytest.mark.parametrize(
    ("numbers", "opset"),
    [
        ({"r2": 1.0, "one": 1, "half": 0.5}, 21),
        ({"r2": 2**0.5, "one": 2, "half": 0.5}, 21),
        ({"r2": 2**0.5, "one": 1, "half": 0.25}, 21),
        ({"r2": 2**0.5, "one": 1, "half": 0.5}, 19),
    ],
)
def test_11_almost_gelu_stays(build, operators, numbers, opset):
    weights = {name: f32(number) for name, number in numbers.items()}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + GELUS[0] + " }", opset=opset, **weights)
    Canonicalize()(model)
    assert "Gelu" not in operators(model)


def test_11_a_factor_with_a_second_reader_stays(build, operators):
    chain = "s = Div(v, r2) e = Erf(s) p = Add(e, one) h = Mul(v, half) y = Mul(p, h) z = Relu(h)"
    numbers = {"r2": f32(2**0.5), "one": f32(1), "half": f32(0.5)}
    model = build("(float[N,3] x) => (float[N,3] y, float[N,3] z) { v = Neg(x) " + chain + " }", **numbers)
    Canonicalize()(model)
    assert "Gelu" not in operators(model)


def test_a_division_by_zero_is_left_alone(build, operators):
    model = build("(float[N,3] x) => (float[N,3] y) { y = Div(x, zero) }", zero=f32(0))
    assert not Canonicalize()(model).modified
    assert operators(model) == {"Div": 1}


SWISHES = [
    "a = Add(v, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(v, d)",
    "a = Add(three, v) c = Clip(a, zero, six) m = Mul(v, c) y = Div(m, six)",
    "a = Add(v, three) c = Clip(a, zero, six) m = Mul(c, v) y = Mul(m, sixth)",
    "a = Add(v, three) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, v)",
    "d = HardSigmoid <alpha = 0.166666667, beta = 0.5> (v) y = Mul(v, d)",
]


@pytest.mark.parametrize("chain", SWISHES)
def test_12_hard_swish(build, assert_same, operators, chain):
    numbers = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}
    weights = {name: f32(number) for name, number in numbers.items() if name in chain.replace("sixth", "")}
    weights |= {"sixth": f32(1 / 6)} if "sixth" in chain else {}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + chain + " }", **weights)
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"Neg": 1, "HardSwish": 1}


def test_12_another_gate_stays(build, operators):
    model = build("(float[N,3] x) => (float[N,3] y) { d = HardSigmoid(x) y = Mul(x, d) }")  # alpha 0.2
    Canonicalize()(model)
    assert operators(model) == {"HardSigmoid": 1, "Mul": 1}


def test_13_hard_sigmoid(build, assert_same, operators):
    model = build(
        "(float[N,3] x, float[N,3] z) => (float[N,3] y) "
        "{ a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(z, d) }",
        three=f32(3),
        zero=f32(0),
        six=f32(6),
    )
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"HardSigmoid": 1, "Mul": 1}
