"""BatchNormToConv: the same numbers from a Conv of one tap per channel."""

import numpy as np
import pytest

from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.write.batch_norm_to_conv import BatchNormToConv

from ..test_canonical.test_fold_batch_norm.conftest import statistics

EVERYWHERE = [load_target("qnn")]


@pytest.mark.parametrize("axes", ["8", "4,6", "2,4,6"])
def test_a_normalization_becomes_a_depthwise_conv(build, assert_same, operators, axes):
    model = build(
        f"(float[N,5,{axes}] x) => (float[N,5,{axes}] y) {{ a = Relu(x) y = BatchNormalization(a, s, t, m, v) }}",
        **statistics(5),
    )
    (norm,) = (node.name for node in model.graph if node.op_type == "BatchNormalization")
    assert_same(model, BatchNormToConv(EVERYWHERE))
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
    assert_same(model, BatchNormToConv(EVERYWHERE))
    assert operators(model) == {"Conv": 2, "Relu": 1}


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        (["qnn"], {"Conv": 4}),
        (["ort"], {"BatchNormalization": 2, "Conv": 2}),  # "n": only summed, "h": within a function of Elu
        (["ort", "qnn"], {"Conv": 4}),
        (["ort", "openvino"], {"BatchNormalization": 2, "Conv": 2}),
    ],
)
def test_what_targets_want(build, assert_same, operators, targets, left):
    model = build(
        """(float[N,5,2,2] x) => (float[N,5,2,2] y, float[N,5,2,2] e) {
        a = Relu(x) b = BatchNormalization(a, s, t, m, v) n = BatchNormalization(b, s, t, m, v) c = Add(n, x)
        d = Elu(c) h = BatchNormalization(d, s, t, m, v) e = Elu(h) y = BatchNormalization(e, s, t, m, v)
    }""",
        **statistics(5),
    )
    assert_same(model, BatchNormToConv(map(load_target, targets)))
    assert operators(model) == {"Relu": 1, "Add": 1, "Elu": 2, **left}


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N,5] x) => (float[N,5] y) { y = BatchNormalization(x, s, t, m, v) }",
        "(float[N,5,2,2] x, float[5] s) => (float[N,5,2,2] y) { y = BatchNormalization(x, s, t, m, v) }",
        "(float[N,5,2,2] x) => (float[N,5,2,2] y) { y = BatchNormalization(x, s, t, m, endless) }",
    ],
)
def test_what_cannot_be_one_stays(build, graph):
    numbers = statistics(5) | {"endless": np.full(5, np.nan, np.float32)}
    used = {name: array for name, array in numbers.items() if f", {name}" in graph and f"float[5] {name}" not in graph}
    assert not BatchNormToConv(EVERYWHERE)(build(graph, **used)).modified


def test_all_stay_where_the_runtime_computes_them(build):
    model = build("(float[N,5,2,2] x) => (float[N,5,2,2] y) { y = BatchNormalization(x, s, t, m, v) }", **statistics(5))
    assert not BatchNormToConv([load_target("openvino")])(model).modified
