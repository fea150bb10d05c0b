"""Canonicalize, one test per rewrite by its number: pooling, flattening, linear layers."""

import numpy as np
import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import i64, only, rand


@pytest.mark.parametrize(
    ("expression", "shape", "wanted"),
    [
        ("ReduceMean(x, axes)", "N,3,1,1", {"GlobalAveragePool": 1}),
        ("ReduceMean <keepdims = 0> (x, axes)", "N,3", {"GlobalAveragePool": 1, "Flatten": 1}),
        ("AveragePool <kernel_shape = [4, 6]> (x)", "N,3,1,1", {"GlobalAveragePool": 1}),
        (
            "AveragePool <kernel_shape = [4, 6], strides = [4, 6], ceil_mode = 1> (x)",
            "N,3,1,1",
            {"GlobalAveragePool": 1},
        ),
        ("AveragePool <kernel_shape = [4, 5]> (x)", "N,3,1,2", {"AveragePool": 1}),
        ("AveragePool <kernel_shape = [4, 6], pads = [0, 0, 1, 0]> (x)", "N,3,2,1", {"AveragePool": 1}),
    ],
)
def test_8_global_pooling(build, assert_same, operators, expression, shape, wanted):
    axes = {"axes": i64(-1, 2)} if "axes" in expression else {}
    model = build(f"(float[N,3,4,6] x) => (float[{shape}] y) {{ y = {expression} }}", named=False, **axes)
    assert_same(model, Canonicalize())
    assert operators(model) == wanted
    assert model.graph.outputs[0].name == "y"


def test_8_other_means_stay(build, operators):
    model = build(
        "(float[N,3,4,6] x) => (float[N,1,1,6] y, float[1,1,1,1] z) { y = ReduceMean(x, axes) z = ReduceMean(x) }",
        axes=i64(1, 2),
    )
    Canonicalize()(model)
    assert operators(model) == {"ReduceMean": 2}


def test_8_the_mean_of_integers_stays(build, operators):
    model = build("(int32[N,3,4,6] x) => (int32[N,3,1,1] y) { y = ReduceMean(x, axes) }", axes=i64(2, 3))
    Canonicalize()(model)
    assert operators(model) == {"ReduceMean": 1}


@pytest.mark.parametrize("target", [(0, -1), (-1, 24), (0, 24), (2, 24)])
def test_9_reshape_to_a_constant_shape(build, assert_same, operators, target):
    model = build("(float[N,4,2,3] x) => (float[a,b] y) { y = Reshape(x, t) }", t=i64(*target))
    assert_same(model, Canonicalize())
    assert operators(model) == {"Flatten": 1}


@pytest.mark.parametrize("target", [(1, -1), (-1, 12), (0, 2, -1), (-1,)])
def test_9_other_reshapes_stay(build, operators, target):
    shape = ",".join("abc"[: len(target)])
    model = build(f"(float[N,4,2,3] x) => (float[{shape}] y) {{ y = Reshape(x, t) }}", t=i64(*target))
    Canonicalize()(model)
    assert operators(model) == {"Reshape": 1}


@pytest.mark.parametrize(
    "size",
    [
        "s = Shape(x) g = Gather(s, zero) n = Unsqueeze(g, first)",
        "s = Shape(x) n = Gather(s, first)",
        "s = Shape(x) n = Slice(s, first, one, first)",
        "n = Shape <start = 0, end = 1> (x)",
        "s = Shape(image) n = Gather(s, first)",
    ],
)
def test_9_reshape_to_the_batch_and_the_rest(build, assert_same, operators, size):
    weights = {"zero": np.array(0), "first": i64(0), "one": i64(1), "rest": i64(-1)}
    text = (
        "(float[N,4,2,3] image) => (float[a,b] y) { x = Relu(image) "
        + size
        + " t = Concat <axis = 0> (n, rest) y = Reshape(x, t) }"
    )
    model = build(text, **weights)
    assert_same(model, Canonicalize())
    assert operators(model) == {"Relu": 1, "Flatten": 1}
    assert set(model.graph.initializers) == set()


def test_9_the_size_of_another_axis_is_not_the_batch(build, operators):
    model = build(
        """(float[N,4,2,3] x) => (float[a,b] y) {
        s = Shape(x) n = Gather(s, one) t = Concat <axis = 0> (n, rest) y = Reshape(x, t)
    }""",
        one=i64(1),
        rest=i64(-1),
    )
    Canonicalize()(model)
    assert operators(model)["Reshape"] == 1


def test_9_the_batch_of_another_input_is_not_the_batch(build, operators):
    model = build(
        """(float[N,4,2,3] x, float[M,4] other) => (float[a,b] y) {
        s = Shape(other) n = Gather(s, first) t = Concat <axis = 0> (n, rest) y = Reshape(x, t)
    }""",
        first=i64(0),
        rest=i64(-1),
    )
    Canonicalize()(model)
    assert operators(model)["Reshape"] == 1


@pytest.mark.parametrize("order", ["Add(m, b)", "Add(b, m)"])
@pytest.mark.parametrize("bias", [(5,), (1, 5)])
def test_10_matmul_and_add_become_gemm(build, assert_same, operators, order, bias):
    model = build(f"(float[N,3] x) => (float[N,5] y) {{ m = MatMul(x, w) y = {order} }}", w=rand(3, 5), b=rand(*bias))
    assert_same(model, Canonicalize())
    assert operators(model) == {"Gemm": 1}
    assert only(model, "Gemm").name == "MatMul_m"


def test_10_more_axes_a_second_reader_or_a_bias_per_row_stay(build, operators):
    model = build(
        """(float[N,7,3] t, float[2,3] x) => (float[N,7,5] y, float[2,5] z, float[2,5] m2, float[2,5] u) {
        m = MatMul(t, w) y = Add(m, b)
        m2 = MatMul(x, w) z = Add(m2, b)
        m3 = MatMul(x, w) u = Add(m3, c)
    }""",
        w=rand(3, 5),
        b=rand(5),
        c=rand(2, 1),
    )
    Canonicalize()(model)
    assert operators(model) == {"MatMul": 3, "Add": 3}


def test_10_gemm_takes_in_its_factors(build, assert_same):
    model = build(
        """(float[N,3] x) => (float[N,5] y, float[N,5] z, float[N,5] plain) {
            y = Gemm<alpha = 0.5, beta = 2.0>(x, w, row)
            z = Gemm<beta = 3.0>(x, w, number)
            plain = Gemm(x, w, bias)
        }""",
        w=rand(3, 5),
        row=rand(1, 5),
        number=rand(1),
        bias=rand(5),
    )
    assert_same(model, Canonicalize())
    for node in model.graph:
        assert node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
        assert list(node.inputs[2].shape) == [5]


def test_10_a_bias_per_row_keeps_its_factor(build, assert_same, operators):
    model = build(
        "(float[2,3] x) => (float[2,5] y) { y = Gemm<alpha = 0.5, beta = 2.0>(x, w, column) }",
        w=rand(3, 5),
        column=rand(2, 1),
    )
    assert_same(model, Canonicalize())
    (gemm,) = model.graph
    assert (gemm.attributes.get_float("alpha", 1.0), gemm.attributes.get_float("beta", 1.0)) == (1.0, 2.0)
