"""Nodes that ONNX Runtime runs inside the engine: recurrent layers, control flow, sequences, text."""

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.operation import is_native
from onnxdfq.model_file.through_proto import infer_shapes

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'


def model_of(text: str, **weights: np.ndarray) -> ir.Model:
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    model = ir.from_proto(proto)
    infer_shapes(model, strict=False)
    return model


def expected(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [np.asarray(found) for found in session.run(None, feeds)]


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


X = weights(4, 2, 3)  # steps, batch, numbers
CASES: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "lstm": (
        """net (float[T,N,3] x) => (float[T,1,N,5] y, float[1,N,5] h) {
            a = Relu (x) y, h = LSTM <hidden_size = 5> (a, w, r) }""",
        {"w": weights(1, 20, 3), "r": weights(1, 20, 5)},
    ),
    "an output left out": (
        """net (float[T,N,3] x) => (float[1,N,5] y) { , h = GRU <hidden_size = 5> (x, w, r) y = Neg (h) }""",
        {"w": weights(1, 15, 3), "r": weights(1, 15, 5)},
    ),
    "a subgraph that reads values and constants around it": (
        """net (float[T,N,3] x) => (float[T,N,3] y) {
            a = Relu (x) s = ReduceSum <keepdims = 0> (a) zero = Constant <value = float {0}> ()
            c = Greater (s, zero)
            y = If (c) <then_branch = yes () => (float[T,N,3] p) { p = Mul (a, f) },
                        else_branch = no () => (float[T,N,3] q) { q = Sub (x, a) }> }""",
        {"f": weights(3)},
    ),
    "a loop": (
        """net (float[T,N,3] x) => (float[T,N,3] y) {
            n = Constant <value = int64 {3}> () c = Constant <value = bool {1}> ()
            y = Loop (n, c, x) <body = step (int64 i, bool go, float[T,N,3] v) => (bool on, float[T,N,3] u) {
                on = Identity (go) u = Add (v, f) }> }""",
        {"f": weights(3)},
    ),
    "sequences": (
        """net (float[T,N,3] x) => (float[S,N,3] y) {
            s = SplitToSequence <axis = 0> (x) i = Constant <value = int64 {1}> ()
            r = SequenceErase (s, i) y = ConcatFromSequence <axis = 0> (r) }""",
        {},
    ),
    "another domain": (
        "net (float[T,N,3] x) => (float[T,N,3] y) { a = Relu (x) y = com.microsoft.QuickGelu <alpha = 1.5> (a) }",
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_onnx_runtime_on_the_whole(name: str) -> None:
    text, constants = CASES[name]
    model = model_of(text, **constants)
    assert any(not is_native(node) for node in model.graph)
    found = TorchGraph(model)(torch.from_numpy(X))
    for ours, theirs in zip(found, expected(model, x=X), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-6)


def test_text_goes_from_node_to_node() -> None:
    text = """net (float[N] x) => (float[N] y) {
        t = Cast <to = 8> (x) u = StringConcat (t, s) v = Cast <to = 1> (u) y = Neg (v) }"""
    model = model_of(text, s=np.array(["1"], dtype=object))
    found = TorchGraph(model)(torch.tensor([2.5, -3.25]))[0]
    assert found.tolist() == pytest.approx([-2.51, 3.251])


def test_shapes_behind_it_are_read_when_it_has_run() -> None:
    text = """net (float[T,N,3] x) => (float[K] y) {
        a = LSTM <hidden_size = 5> (x, w, r) s = Shape (a) l = ReduceProd <keepdims = 1> (s) y = Reshape (a, l) }"""
    model = model_of(text, w=weights(1, 20, 3), r=weights(1, 20, 5))
    graph = TorchGraph(model)
    for x in (X, X[:3], weights(4, 5, 3)):
        np.testing.assert_allclose(graph(torch.from_numpy(x))[0].numpy(), expected(model, x=x)[0], rtol=1e-5, atol=1e-6)


def test_no_gradient_passes_it_and_those_beside_it_stay() -> None:
    model = model_of(
        """net (float[T,N,3] x) => (float[T,N,3] y) { a, h = GRU <hidden_size = 3> (x, w, r)
            z = Constant <value = int64[1] {1}> () b = Squeeze (a, z) y = Mul (b, x) }""",
        w=weights(1, 9, 3),
        r=weights(1, 9, 3),
    )
    x = torch.from_numpy(X).requires_grad_()
    (y,) = TorchGraph(model)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(gradient.numpy(), (y / x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_copy_runs_too() -> None:
    text, constants = CASES["lstm"]
    graph = TorchGraph(model_of(text, **constants))
    first = graph(torch.from_numpy(X))
    again = copy.deepcopy(graph)(torch.from_numpy(X))
    np.testing.assert_array_equal(first[0].numpy(), again[0].numpy())
