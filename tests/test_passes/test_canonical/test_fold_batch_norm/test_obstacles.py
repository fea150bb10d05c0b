"""FoldBatchNorm: what stays, and the reason it gives."""

import numpy as np
import onnx_ir as ir
import pytest

from passes.canonical.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms

from .conftest import rand, statistics

STAYS = [
    ("a = Add(x, x) n = {bn} y = Relu(n)", "its input comes from Add 'Add_a', and its output goes to Relu 'Relu_y'"),
    ("n = {bn_x} y = Relu(n)", "its input is the graph input 'x', and its output goes to Relu 'Relu_y'"),
    ("a = Relu(x) y = {bn}", "its input comes from Relu 'Relu_a', and its output 'y' leaves the graph"),
    (
        "a = Conv(x, w) n = {bn} y = Add(a, n)",
        "the output of Conv 'Conv_a' before it is used elsewhere too, and its output",
    ),
    ("a = Relu(x) n = {bn} b = Conv(n, w) y = Add(b, n)", "its output is used elsewhere than in one node"),
    ("a = Relu(x) n = {bn} y = Conv <pads = [1, 1, 1, 1]> (n, k)", "Conv 'Conv_y' behind it pads with zeros"),
    ('a = Relu(x) n = {bn} y = Conv <auto_pad = "SAME_UPPER"> (n, k)', "Conv 'Conv_y' behind it pads with zeros"),
    ("a = Relu(x) n = {bn} y = ConvTranspose(n, w)", "its output goes to ConvTranspose 'ConvTranspose_y'"),
    (
        "a = Relu(x) n = {bn} p = AveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 1]> (n) y = Conv(p, w)",
        "AveragePool_p",
    ),
    ("a = Relu(x) n = {bn} p = AveragePool <kernel_shape = [1, 1], ceil_mode = 1> (n) y = Conv(p, w)", "AveragePool_p"),
    ("u = Abs(w) a = Conv(x, u) n = {bn} y = Relu(n)", "the weight of Conv 'Conv_a' is no constant"),
    ("u = Abs(t) a = Conv(x, w, u) n = {bn} y = Relu(n)", "the bias of Conv 'Conv_a' is no constant per channel"),
    ("a = MatMul(x, q) n = {bn} y = Relu(n)", "MatMul 'MatMul_a' is not known to have two axes"),
    ("a = Conv(x, w) u = Abs(v) y = BatchNormalization(a, s, t, m, u)", "its parameters are computed by the graph"),
    ("a = Conv(x, w) y = BatchNormalization <epsilon = 0.0> (a, s, t, m, z)", "a scale that is not finite"),
]


@pytest.mark.parametrize(("body", "reason"), STAYS)
def test_what_stays_is_reported(build, body, reason):
    body = body.format(bn="BatchNormalization(a, s, t, m, v)", bn_x="BatchNormalization(x, s, t, m, v)")
    numbers = statistics(4) | {
        "w": rand(4, 4, 1, 1),
        "k": rand(4, 4, 3, 3),
        "q": rand(8, 8),
        "z": np.zeros(4, np.float32),
    }
    model = build(
        "(float[N,4,8,8] x) => (float[N,4,8,8] y) { " + body + " }",
        **{name: array for name, array in numbers.items() if f"{name}," in body or f"{name})" in body},
    )
    (found,) = unfolded_batch_norms(model)
    assert found.node in {"BatchNormalization_n", "BatchNormalization_y"}
    assert found.reason.startswith(f"BatchNormalization '{found.node}' stays: ")
    assert reason in found.reason
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not FoldBatchNorm()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_training_mode_stays(build):
    model = build(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w) y, rm, rv = BatchNormalization <training_mode = 1> (a, s, t, m, v)
    }""",
        w=rand(4, 4, 1, 1),
        **statistics(4),
    )
    (found,) = unfolded_batch_norms(model)
    assert "export the model in evaluation mode" in found.reason
    assert not FoldBatchNorm()(model).modified


def test_batch_norm_as_the_bias_of_gemm_stays(build):
    model = build(
        "(float[3,4] x) => (float[3,4] y) { a = Relu(x) n = BatchNormalization(a, s, t, m, v) y = Gemm(x, w, n) }",
        w=rand(4, 4),
        **statistics(4),
    )
    (found,) = unfolded_batch_norms(model)
    assert "its output is not the data input of Gemm 'Gemm_y'" in found.reason


@pytest.mark.parametrize(
    ("opset", "named", "message"), [(13, True, "convert the model first"), (21, False, "Canonicalize")]
)
def test_what_it_requires(build, opset, named, message):
    model = build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=opset, named=named)
    with pytest.raises(ir.passes.PreconditionError, match=message):
        FoldBatchNorm()(model)


def test_before_a_transposed_gemm_stays(build):
    model = build(
        "(float[3,4] x) => (float[4,5] y) { n = BatchNormalization(x, s, t, m, v) y = Gemm <transA = 1> (n, w) }",
        w=rand(3, 5),
        **statistics(4),
    )
    (found,) = unfolded_batch_norms(model)
    assert "its output is not the data input of Gemm 'Gemm_y'" in found.reason
    assert not FoldBatchNorm()(model).modified


def test_a_reader_in_a_subgraph_is_no_neighbour(build):
    model = build(
        """(float[N,4,8,8] x, bool c) => (float[N,4,8,8] y) {
        a = Relu(x) n = BatchNormalization(a, s, t, m, v)
        y = If (c) <
            then_branch = p () => (float[N,4,8,8] p1) { p1 = Conv(n, w) },
            else_branch = q () => (float[N,4,8,8] q1) { q1 = Abs(a) }
        >
    }""",
        w=rand(4, 4, 1, 1),
        **statistics(4),
    )
    (found,) = unfolded_batch_norms(model)
    assert "its output is used elsewhere than in one node of the main graph" in found.reason
    assert not FoldBatchNorm()(model).modified
