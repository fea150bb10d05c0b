"""Multiplications and numbers of one run, counted by hand."""

import numpy as np
import pytest

from passes.graph.work import Work, work_per_sample


def f32(*shape):
    return np.ones(shape, "f4")


@pytest.mark.parametrize(
    ("text", "weights", "macs", "numbers"),
    [
        # 5 x 6 x 6 numbers of 2 x 3 x 3 products each
        ("(float[N,2,8,8] x) => (float[N,5,6,6] y) { y = Conv(x, w) }", {"w": f32(5, 2, 3, 3)}, 180 * 18, 180),
        # two groups: 6 x 8 x 8 numbers, each of 2 x 1 x 1 products
        ("(float[N,4,8,8] x) => (float[N,6,8,8] y) { y = Conv<group=2>(x, w) }", {"w": f32(6, 2, 1, 1)}, 384 * 2, 384),
        # each of 3 x 4 x 4 numbers that come in is multiplied with 5 x 2 x 2 weights
        (
            "(float[N,3,4,4] x) => (float[N,5,8,8] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
            {"w": f32(3, 5, 2, 2)},
            48 * 20,
            320,
        ),
        (
            "(float[N,4,4,4] x) => (float[N,6,8,8] y) { y = ConvTranspose<strides=[2,2],group=2>(x, w) }",
            {"w": f32(4, 3, 2, 2)},
            64 * 12,
            384,
        ),
        ("(float[N,7] x) => (float[N,3] y) { y = Gemm(x, w) }", {"w": f32(7, 3)}, 21, 3),
        ("(float[N,7] x) => (float[N,3] y) { y = Gemm<transB=1>(x, w) }", {"w": f32(3, 7)}, 21, 3),
        ("(float[N,4,7] x) => (float[N,4,3] y) { y = MatMul(x, w) }", {"w": f32(7, 3)}, 84, 12),
        ("(float[N,4,7] x, float[N,7,4] z) => (float[N,4,4] y) { y = MatMul(x, z) }", {}, 16 * 7, 16),
        ("(float[N,4,7] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": f32(7)}, 28, 4),
        ("(float[N,7] x) => (float[N,7] y) { h = Relu(x) y = Tanh(h) }", {}, 0, 14),
        (
            "(float[N,7] x) => (float[N,3] y, float[N,4] z) { y, z = Split<axis=1>(x, s) }",
            {"s": np.array([3, 4])},
            0,
            7,
        ),
        ("(float[N,7] x) => (float[N,7] y) { s = Shape(x) y = Reshape(x, s) }", {}, 0, 7),
        ("(float[2,7] x) => (float[2,3] y) { y = Gemm(x, w) }", {"w": f32(7, 3)}, 42, 6),
    ],
)
def test_counted_by_hand(build, text, weights, macs, numbers):
    assert work_per_sample(build(text, **weights).graph) == Work(macs=macs, numbers=numbers)
