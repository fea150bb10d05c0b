"""AbsorbHighBias and LiftClips."""

import math

import numpy as np
import onnx_ir as ir
import pytest

from passes.dfq.absorb_bias import AbsorbHighBias, high_biases
from passes.dfq.lift_clips import LiftClips, clipped_shares
from passes.moments.moments import Moments

RNG = np.random.default_rng(8)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def moments(mean, std=1.0):
    return Moments(mean=np.asarray(mean, float), std=np.full(len(mean), float(std)))


def test_by_hand(build):
    # c = max(0, beta - 3 gamma) = (7, 0): the bias 10 becomes 3, and the next one gets 7 times its weights -2 and 4
    model = build(
        "(float[N,1,2,2] x) => (float[N,1,2,2] y) { a = Conv(x, v, b) r = Relu(a) y = Conv(r, w) }",
        v=np.ones((2, 1, 1, 1), np.float32),
        b=np.array([10, 2], np.float32),
        w=np.array([-2, 4], np.float32).reshape(1, 2, 1, 1),
    )
    amounts = high_biases(model, {"a": moments([10, 2])})
    assert {name: amount.tolist() for name, amount in amounts.items()} == {"a": [7, 0], "r": [7, 0]}
    assert AbsorbHighBias(amounts)(model).modified
    first, _, second = model.graph
    assert first.inputs[2].const_value.numpy().tolist() == [3, 2]
    assert second.inputs[2].const_value.numpy().tolist() == [-14]


CHAINS = [
    ("y = Conv(r, w, c)", "w"),
    ("y = Conv <group = 3> (r, g)", "g"),
    ("m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r) y = Conv(m, w)", "w"),
    ("m = AveragePool <kernel_shape = [2, 2]> (r) y = Conv(m, w)", "w"),
    ("m = GlobalAveragePool(r) f = Flatten(m) y = Gemm <transB = 1, alpha = 0.5, beta = 3.0> (f, t, c)", "t"),
    ("f = Flatten(r) y = Gemm(f, h)", "h"),
]


@pytest.mark.parametrize(("body", "weight"), CHAINS)
def test_the_function_stays_where_the_constant_is_exceeded(build, assert_same, body, weight):
    """Here every number lies above the absorbed constant, so that the result is exact."""
    constants = {
        "w": rand(3, 6, 3, 3), "g": rand(3, 2, 3, 3), "t": rand(3, 6), "h": rand(6 * 64, 3), "c": rand(3)
    }  # fmt: skip
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    outputs = "float[N,3] y" if "Gemm" in body else "float[N,3,h2,w2] y"
    model = build(
        f"(float[N,2,8,8] x) => ({outputs}) {{ a = Conv(x, v, b) r = Relu(a) {body} }}",
        v=0.1 * rand(6, 2, 1, 1), b=np.full(6, 10, np.float32),
        **{name: array for name, array in constants.items() if name in words},
    )  # fmt: skip
    amounts = high_biases(model, {"a": moments([10, 9, 8, 7, 3.5, 0], std=1)})
    assert amounts["a"].tolist() == [7, 6, 5, 4, 0.5, 0]
    assert_same(model, AbsorbHighBias(amounts))


def test_a_normal_channel_differs_in_few_numbers(build, run_on):
    """What the paper neglects: 0.135 % of a normal channel lie below c, and come out as c."""
    model = build(
        "(float[N,1] x) => (float[N,1] y) { a = Gemm(x, v, b) r = Relu(a) y = Gemm(r, v) }",
        v=np.ones((1, 1), np.float32),
        b=np.array([5], np.float32),
    )
    x = RNG.normal(size=(200_000, 1))
    before = run_on(model, x=x)["y"]
    AbsorbHighBias(high_biases(model, {"a": moments([5])}))(model)
    after = run_on(model, x=x)["y"]
    differs = np.abs(after - before) > 1e-4
    assert differs.mean() == pytest.approx(0.00135, rel=0.2)
    np.testing.assert_allclose(after[differs], 2, atol=1e-4)


OBSTACLES = [
    "r = Relu(a) y = Conv <pads = [1, 1, 1, 1]> (r, w) z = Neg(x)",  # the border is 0 and not c
    "r = Relu(a) y = Conv <auto_pad = \"SAME_UPPER\"> (r, w) z = Neg(x)",
    "m = Relu(a) r = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (m) y = Conv (r, w) z = Neg(x)",
    "r = Relu(a) y = ConvTranspose(r, u) z = Neg(x)",
    "r = LeakyRelu(a) y = Conv (r, w) z = Neg(x)",
    "y = Conv (a, w) z = Neg(x)",  # no activation: nothing to gain that the thresholds do not see
    "r = Relu(a) y = Conv (r, w) z = Neg(r)",
]  # fmt: skip


@pytest.mark.parametrize("body", OBSTACLES)
def test_what_is_passed_over(build, body):
    constants = {"w": rand(3, 6, 3, 3), "u": rand(6, 3, 3, 3)}
    model = build(
        f"(float[N,2,8,8] x) => (float[N,3,h1,w1] y, float[N,c,8,8] z) {{ a = Conv(x, v) {body} }}",
        v=rand(6, 2, 1, 1), **{name: array for name, array in constants.items() if f"{name})" in body},
    )  # fmt: skip
    assert high_biases(model, {"a": moments([10.0] * 6)}) == {}
    assert not AbsorbHighBias({})(model).modified


def test_nothing_without_moments_or_high_bias(build):
    model = build(
        "(float[N,2,8,8] x) => (float[N,3,8,8] y) { a = Conv(x, v) r = Relu(a) y = Conv(r, w) }",
        v=rand(6, 2, 1, 1), w=rand(3, 6, 1, 1),
    )  # fmt: skip
    assert high_biases(model, {}) == {}
    assert high_biases(model, {"a": moments([2.9] * 6)}) == {}


CLIPS = "(float[N,2,8,8] x) => (float[N,2,8,8] y) { a = Neg(x) r = Clip(a, zero, six) y = Clip(r, one, six) }"


def clips(build) -> ir.Model:
    return build(CLIPS, zero=np.float32(0), one=np.float32(1), six=np.float32(6))


def test_share_that_a_clip_cuts(build):
    model = clips(build)
    assert clipped_shares(model, {}) == {"Clip_r": 1.0}  # the other one is no ReLU6
    expected = 0.5 * math.erfc(2 / math.sqrt(2))  # the bound is two deviations away in the worse channel
    assert clipped_shares(model, {"a": moments([0, 4])})["Clip_r"] == pytest.approx(expected)
    assert clipped_shares(model, {"a": moments([0, 4], std=0)})["Clip_r"] == 0


def test_lifted_clips_are_relus(build, operators, assert_same):
    model = build(CLIPS.replace("six)", "much)"), zero=np.float32(0), one=np.float32(1), much=np.float32(1e6))
    assert_same(model, LiftClips(["Clip_r"]))
    assert operators(model) == {"Neg": 1, "Relu": 1, "Clip": 1}
    assert [node.name for node in model.graph] == ["Neg_a", "Clip_r", "Clip_y"]


def test_only_clips_from_zero_can_be_lifted(build):
    with pytest.raises(ir.passes.PreconditionError, match="called Clip_y"):
        LiftClips(["Clip_y"])(clips(build))
