"""Operators of quantized graphs that ONNX Runtime computes for the engine."""

import copy
import pickle

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.runtime import LAST_BITS

from .conftest import MakeModel

X = np.random.default_rng(0).normal(0, 2, (4, 6, 40)).astype(np.float32)
PARAMETERS = {
    "InstanceNormalization": {"w": np.linspace(0.5, 2, 6), "b": np.linspace(-1, 1, 6)},
    "LayerNormalization": {"w": np.linspace(0.5, 2, 40), "b": np.linspace(-1, 1, 40)},
}


def quantized(make_model: MakeModel, operator: str) -> ir.Model:
    arrays = {"s": np.float32(2**-4), "z": np.int8(0), **PARAMETERS.get(operator, {})}
    more = ", w, b" if "w" in arrays else ""
    declared = ", float[n] w, float[n] b" if more else ""
    text = f"""agraph (float[4, 6, 40] x, float s, int8 z{declared}) => (float[4, 6, 40] y) {{
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        y = {operator}(d{more})
    }}"""
    return make_model(text, arrays, opset=20)


def runtime(model: ir.Model) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, {"x": X})
    return np.asarray(found)


@pytest.mark.parametrize("operator", sorted(LAST_BITS))
def test_the_last_bit_is_that_of_onnxruntime(make_model: MakeModel, operator: str) -> None:
    model = quantized(make_model, operator)
    with torch.no_grad():
        (found,) = TorchGraph(model)(torch.from_numpy(X))
    np.testing.assert_array_equal(found.numpy(), runtime(model))


@pytest.mark.parametrize("operator", sorted(LAST_BITS))
def test_gradients_are_torchs(make_model: MakeModel, operator: str) -> None:
    model = quantized(make_model, operator)
    x = torch.from_numpy(X).requires_grad_()
    (found,) = TorchGraph(model)(x)
    found.sin().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    np.testing.assert_allclose(found.detach().numpy(), runtime(model), rtol=1e-4, atol=1e-5)


def test_parameters_that_train_are_no_obstacle_where_no_gradient_is_asked(make_model: MakeModel) -> None:
    model, x = quantized(make_model, "LayerNormalization"), torch.from_numpy(X)
    graph = TorchGraph(model, trainable=["w", "b"])
    with torch.no_grad():
        np.testing.assert_array_equal(graph(x)[0].numpy(), runtime(model))
    assert graph(x)[0].requires_grad


def test_a_used_graph_can_be_copied(make_model: MakeModel) -> None:
    graph, x = TorchGraph(quantized(make_model, "Softmax")), torch.from_numpy(X)
    with torch.no_grad():
        (expected,) = graph(x)
        for copied in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
            assert torch.equal(copied(x)[0], expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's tracer does it
@pytest.mark.parametrize("operator", ["LayerNormalization", "Softmax"])
def test_compiles_as_one_graph(make_model: MakeModel, operator: str) -> None:
    graph, x = TorchGraph(quantized(make_model, operator)), torch.from_numpy(X)
    with torch.no_grad():
        (expected,) = graph(x)
        (found,) = torch.compile(graph, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
