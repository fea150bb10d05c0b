"""BatchNormToConv: the same numbers from a Conv of one tap per channel."""

import numpy as np
import pytest

from passes.batch_norm_to_conv import BatchNormToConv
from passes.canonicalize import Canonicalize

from .test_fold_batch_norm.conftest import statistics


@pytest.mark.parametrize("axes", ["8", "4,6", "2,4,6"])
def test_a_normalization_becomes_a_depthwise_conv(build, assert_same, operators, axes):
    model = build(
        f"(float[N,5,{axes}] x) => (float[N,5,{axes}] y) {{ a = Relu(x) y = BatchNormalization(a, s, t, m, v) }}",
        **statistics(5),
    )
    (norm,) = (node.name for node in model.graph if node.op_type == "BatchNormalization")
    assert_same(model, BatchNormToConv())
    assert operators(model) == {"Relu": 1, "Conv": 1}
    conv = next(reversed(model.graph))
    assert (conv.name, conv.attributes.get_int("group", 1), conv.outputs[0].name) == (norm, 5, "y")
    assert set(model.graph.initializers) == {f"{norm}.weight", f"{norm}.bias"}
    assert not Canonicalize()(model).modified


def test_two_of_the_same_parameters(build, assert_same, operators):
    model = build(
        """(float[N,5,2,2] x) => (float[N,5,2,2] y) {
        a = BatchNormalization(x, s, t, m, v) b = Relu(a) y = BatchNormalization(b, s, t, m, v)
    }""",
        **statistics(5),
    )
    assert_same(model, BatchNormToConv())
    assert operators(model) == {"Conv": 2, "Relu": 1}


@pytest.mark.parametrize(("summed", "left"), [(True, {"Conv": 2}), (False, {"BatchNormalization": 1, "Conv": 1})])
def test_what_is_only_added_may_stay(build, assert_same, operators, summed, left):
    model = build(
        """(float[N,5,2,2] x) => (float[N,5,2,2] y) {
        a = Relu(x) b = BatchNormalization(a, s, t, m, v) c = BatchNormalization(b, s, t, m, v) y = Add(c, x)
    }""",
        **statistics(5),
    )
    assert_same(model, BatchNormToConv(summed=summed))
    assert operators(model) == {"Relu": 1, "Add": 1, **left}


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N,5] x) => (float[N,5] y) { y = BatchNormalization(x, s, t, m, v) }",
        "(float[N,5,2,2] x, float[5] s) => (float[N,5,2,2] y) { y = BatchNormalization(x, s, t, m, v) }",
        "(float[N,5,2,2] x) => (float[N,5,2,2] y) { y = BatchNormalization(x, s, t, m, endless) }",
    ],
)
def test_others_stay(build, graph):
    numbers = statistics(5) | {"endless": np.full(5, np.nan, np.float32)}
    used = {name: array for name, array in numbers.items() if f", {name}" in graph and f"float[5] {name}" not in graph}
    assert not BatchNormToConv()(build(graph, **used)).modified
