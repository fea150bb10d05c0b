"""Statistics that are read, and signs of statistics that are lost."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.graph.batch_norm import folded_batch_norms, read_batch_norms, rewritten_batch_norms

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


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("a = Conv(x, w) b = Mul(a, k) c = Add(b, k) y = Relu(c)", ("Mul_b",)),
        ("a = Conv(x, w) b = Sub(a, k) c = Div(b, k) d = Mul(c, k) y = Add(k, d)", ("Sub_b",)),
        ("z = Conv(x, w) a = Relu(z) b = Mul(a, k) c = Add(b, k) y = Conv(c, w)", ("Mul_b",)),
        ("z = Conv(x, w) a = Concat <axis = 0> (z, z) b = Mul(k, a) c = Add(b, k) y = Relu(c)", ("Mul_b",)),
        ("a = Conv(x, w) b = Mul(a, k) y = Relu(b)", ()),
        ("a = Conv(x, w) b = Add(a, k) y = Relu(b)", ()),
        ("a = Conv(x, w) b = Mul(a, one) c = Add(b, one) y = Relu(c)", ()),
        ("a = Conv(x, w) b = Mul(a, last) c = Add(b, last) y = Relu(c)", ()),
        ("a = Mul(x, k) b = Add(a, k) y = Conv(b, w)", ()),
    ],
    ids=[
        "mul-add",
        "sub-div-mul-add",
        "before-Conv",
        "before-Relu",
        "scale-only",
        "shift-only",
        "scalars",
        "last-axis",
        "image",
    ],
)
def test_rewritten(build, body, found):
    weights = {"w": rand(3, 3, 1, 1), "k": rand(3, 1, 1), "one": rand(1), "last": rand(5)}
    used = {name: array for name, array in weights.items() if f" {name})" in body or f"({name}," in body}
    model = build("(float[N,3,5,5] x) => (float[M,3,5,5] y) { " + body + " }", **used)
    assert rewritten_batch_norms(model) == found
    assert folded_batch_norms(model) == found


BIASED = "(float[N,3,5,5] x) => (float[N,3,5,5] y) { a = Conv(x, w, b) r = Relu(a) %s }"


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ("y = ConvTranspose(r, w, b)", ("Conv_a", "ConvTranspose_y")),
        ("c = Conv(r, w, b) d = Mul(c, k) y = Add(d, k)", ("Conv_a", "Conv_c", "Mul_d")),
        ("y = Conv(r, w)", ()),
        ("y = Sigmoid(r)", ()),
        ("c = Conv(r, w, b) y = BatchNormalization(c, b, b, b, b)", ()),
    ],
    ids=["all with bias", "and a rewritten one", "one without bias", "a single one", "one is intact"],
)
def test_biases_everywhere_and_no_batch_norm(build, rest, found):
    weights = {"w": rand(3, 3, 1, 1), "b": rand(3)} | ({"k": rand(3, 1, 1)} if "k" in rest else {})
    assert folded_batch_norms(build(BIASED % rest, **weights)) == found


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20_cifar10", 19),
        ("resnet8_cifar10", 7),
        ("mobilenetv1_vww", 27),
        ("fastestdet_coco", 70),
        ("vit_cifar10", 0),
    ],
)
def test_real_models(shared_data, name, count):
    model = ir.from_proto(onnx.load(shared_data / "models" / f"{name}.onnx"))
    assert len(read_batch_norms(model)) == count
    assert folded_batch_norms(model) == ()
