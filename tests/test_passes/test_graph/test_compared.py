"""Where two versions of a network are compared, and which output says what class it is."""

import numpy as np
import pytest

from passes.graph.compared import answer_output, compared_values

SCORES = "(float[N,5] x) => (float[N,5] y) { h = Relu(x) y = Tanh(h) }"


@pytest.mark.parametrize(
    ("text", "weights", "values", "answer"),
    [
        (SCORES, {}, ["y"], None),
        ("(float[N,5] x) => (float[N,5] y) { h = Relu(x) y = Softmax(h) }", {}, ["y"], 0),
        ("(float[N,5] x) => (float[N,3] y) { y = Gemm(x, w) }", {"w": np.ones((5, 3), "f4")}, ["y"], 0),
        ("(float[N,5] x) => (float[N,1] y) { y = Gemm(x, w) }", {"w": np.ones((5, 1), "f4")}, ["y"], None),
        (
            "(float[N,5,4,4] x) => (float[N,5,1,1] y) { h = Relu(x) y = GlobalAveragePool(h) }",
            {},
            ["y"],
            0,
        ),
        (
            "(float[N,5] x) => (float[N,5] a, float[N,5] b) { a = Relu(x) b = Softmax(a) }",
            {},
            ["a", "b"],
            1,
        ),
        (  # two outputs of layers: boxes and what not
            "(float[N,5] x) => (float[N,3] a, float[N,3] b) { a = Gemm(x, w) b = MatMul(x, w) }",
            {"w": np.ones((5, 3), "f4")},
            ["a", "b"],
            None,
        ),
        (
            "(float[N,5] x) => (int64[N] y) { h = Relu(x) y = ArgMax<axis=1,keepdims=0>(h) }",
            {},
            ["h"],
            0,
        ),
        (  # an answer as it came in has nothing before it that rounds
            "(float[N,5] x) => (int64[N] y) { y = ArgMax<axis=1,keepdims=0>(x) }",
            {},
            [],
            0,
        ),
        (
            "(float[N,5] x) => (float[N,2] y, int64[N,2] places) { h = Relu(x) y, places = TopK(h, k) }",
            {"k": np.array([2])},
            ["y", "h"],
            1,
        ),
        (  # of what Where chooses by, the scores and not the threshold
            """(float[N,5] x, float t) => (int64[N,5] y) {
                h = Relu(x)
                s = Tanh(t)
                over = Greater(s, h)
                y = Where(over, one, zero)
            }""",
            {"one": np.array(1), "zero": np.array(0)},
            ["h"],
            0,
        ),
        (
            """(float[N,6,4] x, float[N,3,6] z) => (int64[m,3] y) {
                boxes = Relu(x)
                scores = Sigmoid(z)
                y = NonMaxSuppression(boxes, scores, most, iou)
            }""",
            {"most": np.array([2]), "iou": np.array([0.5], "f4")},
            ["boxes"],
            0,
        ),
        (  # one value behind two outputs is compared once
            """(float[N,5] x) => (float[N,5] h, int64[N] y) {
                h = Relu(x)
                y = ArgMax<axis=1,keepdims=0>(h)
            }""",
            {},
            ["h"],
            1,
        ),
        (
            "(float[N,5] x) => (int64 y) { h = Relu(x) s = Shape(h) y = ReduceProd<keepdims=0>(s) }",
            {},
            ["h"],
            None,
        ),
    ],
)
def test_compared_values_and_the_answer(build, text, weights, values, answer):
    graph = build(text, **weights).graph
    assert [value.name for value in compared_values(graph)] == values
    assert answer_output(graph) == answer
