"""Moments without data: closed forms by hand, then many samples."""

import math

import numpy as np
import pytest

from passes.dfq.absorb_bias import AbsorbHighBias, high_biases
from passes.dfq.equalize import EqualizeChannels, equalizing_scales
from passes.moments.moments import (
    Moments,
    activation_moments,
    batch_norm_moments,
    moments_after_edit,
    spreads,
)
from passes.ocs import SplitChannels, channel_splits, widened_values

from .normalized import BETA, BN, GAMMA, NORM, RNG, moments_of, samples


def density(r):
    return np.exp(-np.square(r) / 2) / math.sqrt(2 * math.pi)


def below(r):
    return 0.5 * (1 + np.vectorize(math.erf)(r / math.sqrt(2)))


def test_of_a_batch_norm(build):
    found = moments_of(build, "y = Neg(b)")
    np.testing.assert_allclose(found["x"].mean, NORM["m"])
    np.testing.assert_allclose(found["x"].std, [2, 1, 3, math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(found["b"].mean, BETA, atol=1e-12)
    np.testing.assert_allclose(found["b"].std, np.abs(GAMMA), rtol=1e-6)
    np.testing.assert_allclose(found["y"].mean, -BETA, atol=1e-6)
    assert not any(moments.approximate for moments in found.values())


def test_epsilon_takes_from_the_spread(build):
    text = "(float[N,4,6,6] x) => (float[N,4,6,6] y) { y = BatchNormalization <epsilon = 3.0> (x, s, t, m, v) }"
    found = activation_moments(build(text, **NORM | {"v": np.array([1, 0, 3, 9], np.float32)}))
    np.testing.assert_allclose(found["y"].std, np.abs(GAMMA) * np.sqrt([1 / 4, 0, 1 / 2, 3 / 4]), rtol=1e-6, atol=1e-9)


def test_relu_by_the_closed_form(build):
    """DFQ, appendix C: E = gamma phi(r) + beta Phi(r); of the square, (beta² + gamma²) Phi(r) + beta gamma phi(r)."""
    found = moments_of(build, "y = Relu(b)")["y"]
    beta, gamma = BETA.astype(float), np.abs(GAMMA.astype(float))
    r = beta / gamma
    mean = gamma * density(r) + beta * below(r)
    square = (beta**2 + gamma**2) * below(r) + beta * gamma * density(r)
    np.testing.assert_allclose(found.mean, mean, rtol=2e-3)
    np.testing.assert_allclose(found.std, np.sqrt(square - mean**2), rtol=2e-3)
    assert not found.approximate


@pytest.mark.parametrize(
    ("body", "function"),
    [
        ("y = Clip(b, low, high)", lambda x: np.clip(x, 0, 1)),
        ("y = LeakyRelu <alpha = 0.2> (b)", lambda x: np.where(x < 0, 0.2 * x, x)),
        ("y = PRelu(b, slope)", lambda x: np.where(x < 0, np.arange(4)[:, None] * x, x)),
        ("y = HardSwish(b)", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("y = Gelu(b)", lambda x: x * below(x)),
        # a value and a function of the same value are not independent
        ("g = Sigmoid(b) y = Mul(b, g)", lambda x: x / (1 + np.exp(-x))),
        ("g = Relu(b) y = Sub(b, g)", lambda x: np.minimum(x, 0)),
        ("g = Mul(b, two) y = Add(g, slope)", lambda x: 2 * x + np.arange(4)[:, None]),
        ("g = Sub(two, b) y = Div(g, two)", lambda x: 1 - x / 2),
    ],
)
def test_functions_against_samples(build, body, function):
    constants = {
        "low": np.float32(0),
        "high": np.float32(1),
        "two": np.full(1, 2, np.float32),
        "slope": np.arange(4, dtype=np.float32).reshape(4, 1, 1),
    }
    used = {name: np.asarray(array) for name, array in constants.items() if name in body.replace("alpha", "")}
    found, wanted = moments_of(build, body, **used)["y"], function(samples())
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found.std, wanted.std(axis=1), rtol=0.01, atol=0.005)
    assert not found.approximate


def test_sum_of_branches_counts_them_as_independent(build):
    model = build(
        f"(float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) "
        f"{{ b = {BN} c = BatchNormalization <epsilon = 0.0> (z, s, m, t, v) r = Relu(c) a = Add(b, r) y = Relu(a) }}",
        **NORM,
    )
    found = activation_moments(model)
    left, right = samples(), np.maximum(samples(NORM["m"]), 0)
    np.testing.assert_allclose(found["a"].mean, (left + right).mean(axis=1), atol=0.02)
    np.testing.assert_allclose(found["a"].std, (left + right).std(axis=1), rtol=0.01)
    np.testing.assert_allclose(found["y"].mean, np.maximum(left + right, 0).mean(axis=1), atol=0.02)
    assert found["a"].approximate
    assert found["y"].approximate


def test_gate_of_another_value(build):
    model = build(
        f"(float[N,4,6,6] x, float[N,4,1,1] z) => (float[N,4,6,6] y) "
        f"{{ b = {BN} c = BatchNormalization <epsilon = 0.0> (z, s, m, t, v) "
        "g = Sigmoid(c) r = Relu(b) y = Mul(r, g) }",
        **NORM,
    )
    found, wanted = activation_moments(model)["y"], np.maximum(samples(), 0) / (1 + np.exp(-samples(NORM["m"])))
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), atol=0.01)
    np.testing.assert_allclose(found.std, wanted.std(axis=1), rtol=0.02, atol=0.002)
    assert found.approximate


@pytest.mark.parametrize(
    "body",
    [
        "p, q = Split <num_outputs = 2, axis = 1> (b) g = Sigmoid(q) y = Mul(p, g)",
        "q = Gather <axis = 1> (b, i) g = Sigmoid(q) p = Gather <axis = 1> (b, j) y = Mul(p, g)",
    ],
)
def test_halves_of_a_value_are_not_the_same_variable(build, body):
    """A gated linear unit."""
    indices = {"j": np.array([0, 1]), "i": np.array([2, 3])} if "Gather" in body else {}
    found = moments_of(build, body, "float[N,2,6,6] y", **indices)["y"]
    left, right = samples(BETA[:2], GAMMA[:2]), samples(BETA[2:], GAMMA[2:])
    wanted = left / (1 + np.exp(-right))
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), atol=0.01)
    np.testing.assert_allclose(found.std, wanted.std(axis=1), rtol=0.01)


@pytest.mark.parametrize("pool", ["GlobalAveragePool(b)", "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)"])
def test_pooling_is_approximate(build, pool):
    size = 1 if "Global" in pool else 3
    found = moments_of(build, f"y = {pool}", f"float[N,4,{size},{size}] y")["y"]
    np.testing.assert_allclose(found.mean, BETA, atol=1e-6)
    assert found.approximate


@pytest.mark.parametrize(
    ("layer", "shape", "outputs"),
    [
        ("Conv <group = 2> (b, w, c)", (6, 2, 1, 1), "float[N,6,6,6] y"),
        ("Conv (b, w, c)", (6, 4, 1, 1), "float[N,6,6,6] y"),
        ("ConvTranspose <group = 2, strides = [2, 2]> (b, w, c)", (4, 3, 2, 2), "float[N,6,12,12] y"),
    ],
)
def test_layer_without_normalization(build, run_on, layer, shape, outputs):
    """Against the layer on many independent normal numbers; none of these meets a border."""
    weight, bias = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=6).astype(np.float32)
    body = f"(float[N,4,6,6] b) => ({outputs}) {{ y = {layer} }}"
    model = build(body, w=weight, c=bias)
    known = {"b": Moments(mean=BETA.astype(float), std=np.abs(GAMMA).astype(float))}
    found = activation_moments(model, known)["y"]
    data = samples(count=36 * 3000).reshape(4, 3000, 6, 6).transpose(1, 0, 2, 3)
    outcome = run_on(model, b=data)["y"]
    np.testing.assert_allclose(found.mean, outcome.mean(axis=(0, 2, 3)), atol=0.05)
    # every output position of the transposed layer sees one tap: its own mean, its own spread
    mean = outcome.mean(axis=0, keepdims=True) if "Transpose" not in layer else None
    if mean is not None:
        np.testing.assert_allclose(found.std, (outcome - mean).std(axis=(0, 2, 3)), rtol=0.02)
    assert found.approximate


def test_gemm_by_hand(build):
    model = build(
        "(float[N,2] b) => (float[N,1] y) { y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (b, w, c) }",
        w=np.array([[3, 4]], np.float32),
        c=np.array([10], np.float32),
    )
    found = activation_moments(model, {"b": Moments(mean=np.array([1.0, 2.0]), std=np.array([2.0, 1.0]))})["y"]
    assert found.mean == pytest.approx([0.5 * (3 + 8) + 20])
    assert found.std == pytest.approx([0.5 * math.hypot(6, 4)])


def test_what_cannot_be_told_is_absent(build):
    model = build(
        f"(float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) {{ a = Relu(z) b = {BN} y = Add(a, b) }}", **NORM
    )
    assert set(activation_moments(model)) == {"x", "b"}
    image = Moments(mean=np.zeros(4), std=np.ones(4))
    assert set(activation_moments(model, {"z": image})) == {"x", "z", "a", "b", "y"}


def test_statistics_that_make_no_sense_are_absent(build):
    found = batch_norm_moments(
        build(
            f"(float[N,4,6,6] x) => (float[N,4,6,6] y) {{ y = {BN} }}",
            **NORM | {"v": np.array([1, -1, 1, 1], np.float32)},
        )
    )
    assert found == {}


def test_of_an_edited_graph():
    known = {"a": Moments(mean=np.array([1.0, 2.0]), std=np.array([3.0, 4.0]), approximate=True), "b": image()}
    scaled = moments_after_edit(known, {"a": np.array([2.0, -1.0])}, Moments.scaled)
    assert scaled["b"] is known["b"]
    assert (scaled["a"].mean.tolist(), scaled["a"].std.tolist()) == ([2, -2], [6, 4])
    lowered = moments_after_edit(known, {"a": np.array([5.0, 0.0])}, Moments.lowered)["a"]
    assert (lowered.mean.tolist(), lowered.std.tolist()) == ([-4, 2], [3, 4])
    taken = moments_after_edit(known, {"a": np.array([1, 1, 0])}, Moments.taken)["a"]
    assert (taken.mean.tolist(), taken.std.tolist()) == ([2, 2, 1], [4, 4, 3])
    assert scaled["a"].approximate and lowered.approximate and taken.approximate


@pytest.mark.parametrize("edit", ["equalize", "absorb", "split"])
def test_moments_follow_the_passes(build, edit):
    """What is told of the edited graph is what the edit makes of what was told before."""
    model = build(
        "(float[N,2,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, v, b) r = Relu(a) y = Conv(r, w) }",
        v=(RNG.normal(size=(6, 2, 1, 1)) * np.geomspace(0.1, 10, 6).reshape(-1, 1, 1, 1)).astype(np.float32),
        b=np.full(6, 2, np.float32),
        w=RNG.normal(size=(3, 6, 1, 1)).astype(np.float32),
    )
    known = {"x": image(), "a": Moments(mean=np.linspace(0, 5, 6), std=np.linspace(0.5, 1.5, 6))}
    before = activation_moments(model, known)
    if edit == "equalize":
        scales = equalizing_scales(model)
        EqualizeChannels(scales)(model)
        known, wanted = moments_after_edit(known, scales, Moments.scaled), before["r"].scaled(scales["r"])
    elif edit == "absorb":
        amounts = high_biases(model, known)
        AbsorbHighBias(amounts)(model)
        known, wanted = moments_after_edit(known, amounts, Moments.lowered), before["r"].lowered(amounts["r"])
    else:
        splits = channel_splits(model, ratio=0.3, bits=4)
        widened = widened_values(model, splits)
        SplitChannels(splits)(model)
        known, wanted = moments_after_edit(known, widened, Moments.taken), before["r"].taken(widened["r"])
    after = activation_moments(model, known)
    np.testing.assert_allclose(after["r"].mean, wanted.mean, rtol=2e-3)
    np.testing.assert_allclose(after["r"].std, wanted.std, rtol=2e-2)
    np.testing.assert_allclose(after["y"].mean, before["y"].mean, rtol=1e-3, atol=1e-3)


def image():
    return Moments(mean=np.zeros(2), std=np.ones(2))


def test_layers_with_normalization_tell_of_those_without(build):
    """Three inputs that all grow together: a normalized layer before shows that, and the one behind believes it."""
    ones = np.ones((4, 4, 1, 1), np.float32)
    text = (
        "(float[N,4,6,6] x) => (float[N,4,6,6] z) { "
        "b = BatchNormalization <epsilon = 0.0> (x, s, t, m, v) "
        "c = Conv (b, w) n = BatchNormalization <epsilon = 0.0> (c, one, zero, zero, wide) "
        "z = Conv (n, w) }"
    )
    plain = {"one": np.ones(4, np.float32), "zero": np.zeros(4, np.float32)}
    for variance, wanted in ((4.0, 2.0), (16.0, 4.0), (8.0, 2 * math.sqrt(2.0)), (1e6, 4.0), (1e-2, 2.0)):
        # four inputs of deviation 1: their sum has deviation 2 if independent, 4 if they are one and the same
        model = build(
            text,
            **NORM | {"s": plain["one"], "t": plain["zero"]},
            **plain,
            wide=np.full(4, variance, np.float32),
            w=ones,
        )
        np.testing.assert_allclose(activation_moments(model)["z"].std, wanted, rtol=1e-6, err_msg=str(variance))


def test_a_normalized_activation_keeps_its_shape(build):
    """GELU before the normalization (ConvMixer): mean and deviation are the statistics', the lower bound is GELU's."""
    model = build(
        f"(float[N,4,6,6] x) => (float[N,4,6,6] y) {{ b = {BN} g = Relu(b) "
        "y = BatchNormalization <epsilon = 0.0> (g, one, zero, one, one) }",
        **NORM,
        one=np.ones(4, np.float32),
        zero=np.zeros(4, np.float32),
    )
    found = dict(spreads(model))["y"]
    np.testing.assert_allclose(found.mean, 0, atol=1e-6)
    np.testing.assert_allclose(found.std, 1, rtol=1e-6)
    lowest = found.points.min(axis=1, keepdims=True)
    assert ((found.points == lowest).sum(axis=1) > 40).all()  # where Relu gave zero


def test_sum_of_mirrored_branches(build):
    """A negative gamma turns a channel round; what is added to it stays independent of it all the same."""
    model = build(
        f"(float[N,4,6,6] x, float[N,4,6,6] z) => (float[N,4,6,6] y) "
        f"{{ b = {BN} c = BatchNormalization <epsilon = 0.0> (z, s, t, m, v) n = Neg(c) a = Add(b, n) y = Relu(a) }}",
        **NORM,
    )
    found, wanted = activation_moments(model)["y"], np.maximum(samples() - samples(), 0)
    np.testing.assert_allclose(found.mean, wanted.mean(axis=1), rtol=0.01)
    np.testing.assert_allclose(found.std, wanted.std(axis=1), rtol=0.01)
