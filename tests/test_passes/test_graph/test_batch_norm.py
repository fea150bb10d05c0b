"""Statistics that are read."""

import numpy as np
import pytest

from passes.graph.batch_norm import read_batch_norms

RNG = np.random.default_rng(1)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def batch_norm_weights(channels):
    return {"s": rand(channels), "b": rand(channels), "m": rand(channels), "v": np.abs(rand(channels))}


@pytest.mark.parametrize(
    ("body", "weights", "value"),
    [
        ("a = Conv(x, w) y = BatchNormalization(a, s, b, m, v)", {"w": (4, 3, 1, 1)}, "a"),
        ("a = ConvTranspose(x, w) y = BatchNormalization(a, s, b, m, v)", {"w": (3, 4, 1, 1)}, "a"),
        ("c = Conv(x, w) a = Add(c, c) y = BatchNormalization(a, s, b, m, v)", {"w": (4, 3, 1, 1)}, "a"),
        (
            "a = Conv(x, w) d = BatchNormalization(a, s, b, m, v) y = Conv(d, u)",
            {"w": (4, 3, 1, 1), "u": (4, 4, 1, 1)},
            "a",
        ),
    ],
    ids=["after Conv", "after ConvTranspose", "on a sum", "before Conv"],
)
def test_a_batch_norm_is_read_wherever_it_stands(build, body, weights, value):
    parameters = batch_norm_weights(4)
    model = build(
        "(float[N,3,5,5] x) => (float[N,4,5,5] y) { "
        + body.replace("Normalization(", "Normalization <epsilon = 0.25> (")
        + " }",
        **parameters,
        **{name: rand(*shape) for name, shape in weights.items()},
    )
    (stats,) = read_batch_norms(model)
    assert stats.node.startswith("BatchNormalization_")
    assert stats.value == value
    assert stats.epsilon == 0.25
    for name, array in (("scale", stats.scale), ("bias", stats.bias), ("mean", stats.mean), ("var", stats.var)):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, parameters[name[0]])


def test_after_gemm_on_a_graph_input_and_the_default_epsilon(build):
    model = build(
        """(float[N,4] x) => (float[N,4] y) {
        a = BatchNormalization(x, s, b, m, v)
        g = Gemm(a, w)
        y = BatchNormalization(g, s, b, m, v)
    }""",
        w=rand(4, 4),
        **batch_norm_weights(4),
    )
    first, second = read_batch_norms(model)
    assert (first.value, second.value) == ("x", "g")
    assert first.node != second.node
    np.testing.assert_array_equal(first.mean, second.mean)  # two nodes, one set of initializers: both are listed
    assert first.epsilon == pytest.approx(1e-5)


def test_training_mode_constants_as_nodes_and_identities(build):
    model = build("""(float[N,2,3,3] x) => (float[N,2,3,3] y) {
        one = Constant <value = float[2] {1, 1}> ()
        m = Constant <value = float[2] {3, 4}> ()
        zero = Constant <value_floats = [0.0, 0.0]> ()
        bias = Identity(zero)
        y, rm, rv = BatchNormalization <training_mode = 1> (x, one, bias, m, one)
    }""")
    (stats,) = read_batch_norms(model)
    np.testing.assert_array_equal(stats.mean, [3, 4])
    np.testing.assert_array_equal(stats.bias, [0, 0])


def test_half_precision_parameters_are_read_as_float32(build):
    parameters = {name: array.astype(np.float16) for name, array in batch_norm_weights(2).items()}
    model = build(
        "(float16[N,2,3,3] x) => (float16[N,2,3,3] y) { y = BatchNormalization(x, s, b, m, v) }", **parameters
    )
    (stats,) = read_batch_norms(model)
    assert stats.var.dtype == np.float32
    np.testing.assert_array_equal(stats.var, parameters["v"].astype(np.float32))


def test_computed_parameters_are_no_running_statistics(build):
    model = build(
        "(float[N,2,3,3] x, float[2] k) => (float[N,2,3,3] y) { u = Mul(m, k) y = BatchNormalization(x, s, b, u, v) }",
        **batch_norm_weights(2),
    )
    assert read_batch_norms(model) == ()
