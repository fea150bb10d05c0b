"""What ONNX Runtime's optimizer fused, as standard operators: equal results, and what has no counterpart stays."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fused import lower_fused

from .conftest import rand

FUSED = "com.microsoft"


def model_of(node, *, opset=21, shape=("N", 3, 8, 8), **weights):
    """x, and z of the same shape as the result, to y; the node reads them by these names."""
    infos = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)]
    if "z" in node.input:
        infos.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 4, 6, 6]))
    graph = helper.make_graph(
        [node],
        "g",
        infos,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(FUSED, 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def fused(op_type, *inputs, **attributes):
    return helper.make_node(op_type, inputs, ["y"], name="fused", domain=FUSED, **attributes)


def outputs(model):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(5)
    feeds = {
        value.name: random.normal(0, 2, [2 if isinstance(size, str) else size for size in value.shape]).astype("f4")
        for value in session.get_inputs()
    }
    return session.run(None, feeds)[0]


def lowered(model):
    """The operators that the node became; its results are those of ONNX Runtime's own kernel."""
    before = outputs(model)
    assert lower_fused(model.graph) == 1
    assert all(node.domain == "" and node.name for node in model.graph)
    after = outputs(model)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    return [node.op_type for node in model.graph]


CONV = {"kernel_shape": [3, 3], "strides": [1, 1]}
ACTIVATIONS = [
    ("Relu", []),
    ("Sigmoid", []),
    ("Tanh", []),
    ("LeakyRelu", [0.2]),
    ("Clip", [-0.5, 1.0]),
    ("HardSigmoid", [0.3, 0.4]),
]


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(("activation", "numbers"), ACTIVATIONS)
def test_convolutions_with_each_activation(activation, numbers, summed):
    inputs = ["x", "w", "b", "z"] if summed else ["x", "w", "b"]
    parameters = {"activation_params": numbers} if numbers else {}
    node = fused("FusedConv", *inputs, activation=activation, **parameters, **CONV)
    model = model_of(node, w=rand(4, 3, 3, 3), b=rand(4))
    assert lowered(model) == ["Conv", *["Add"] * summed, activation]


def test_convolutions_keep_their_own_attributes():
    attributes = {"group": 2, "dilations": [2, 1], "pads": [1, 0, 0, 1], "strides": [2, 1], "kernel_shape": [3, 3]}
    node = fused("FusedConv", "x", "w", activation="Relu", **attributes)
    model = model_of(node, shape=("N", 4, 8, 8), w=rand(6, 2, 3, 3))
    assert lowered(model) == ["Conv", "Relu"]
    conv = model.graph.node(0)
    assert {name: attribute.value for name, attribute in conv.attributes.items()} == {
        name: value if isinstance(value, int) else tuple(value) for name, value in attributes.items()
    }


def test_a_sum_without_a_bias():
    node = fused("FusedConv", "x", "w", "", "z", activation="Relu", **CONV)
    assert lowered(model_of(node, w=rand(4, 3, 3, 3))) == ["Conv", "Add", "Relu"]


@pytest.mark.parametrize(
    ("activation", "numbers"),
    [
        ("Relu", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("LeakyRelu", {"activation_alpha": 0.2}),
        ("Elu", {"activation_alpha": 0.7}),
        ("ThresholdedRelu", {"activation_alpha": 0.5}),
        ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
    ],
)
def test_gemm_with_each_activation(activation, numbers):
    node = fused("FusedGemm", "x", "w", "b", activation=activation, alpha=0.5, beta=2.0, transB=1, **numbers)
    assert lowered(model_of(node, shape=("N", 5), w=rand(4, 5), b=rand(4))) == ["Gemm", activation]


@pytest.mark.parametrize(
    ("attributes", "shape", "weight", "op_types"),
    [
        ({}, ("N", 6, 5), (5, 4), ["MatMul"]),
        ({"alpha": 0.25}, ("N", 6, 5), (5, 4), ["MatMul", "Mul"]),
        ({"transA": 1}, ("N", 5, 6), (5, 4), ["Transpose", "MatMul"]),
        ({"transB": 1}, ("N", 6, 5), (4, 5), ["Transpose", "MatMul"]),
        ({"transA": 1, "transB": 1, "alpha": -2.0}, ("N", 5, 6), (4, 5), ["Transpose", "Transpose", "MatMul", "Mul"]),
        ({"transB": 1}, ("N", 3, 6, 5), (3, 4, 5), ["Transpose", "MatMul"]),
    ],
)
def test_matrix_products(attributes, shape, weight, op_types):
    assert lowered(model_of(fused("FusedMatMul", "x", "w", **attributes), shape=shape, w=rand(*weight))) == op_types


@pytest.mark.parametrize(
    ("node", "weights", "op_types"),
    [
        (fused("Gelu", "x"), {}, ["Gelu"]),
        (fused("BiasGelu", "x", "b"), {"b": rand(5)}, ["Add", "Gelu"]),
        (fused("FastGelu", "x"), {}, ["Gelu"]),
        (fused("FastGelu", "x", "b"), {"b": rand(5)}, ["Add", "Gelu"]),
        (fused("QuickGelu", "x"), {}, ["Mul", "Sigmoid", "Mul"]),
        (fused("QuickGelu", "x", alpha=2.5), {}, ["Mul", "Sigmoid", "Mul"]),
        (fused("QuickGelu", "x", alpha=1.0), {}, ["Sigmoid", "Mul"]),
    ],
)
def test_variants_of_gelu(node, weights, op_types):
    assert lowered(model_of(node, shape=("N", 7, 5), **weights)) == op_types


@pytest.mark.parametrize(
    ("node", "opset"),
    [
        (fused("FusedConv", "x", "w", activation="Mystery"), 21),
        (fused("FusedConv", "x", "w", activation="LeakyRelu"), 21),  # without its slope
        (fused("FusedGemm", "x", "w", activation="Mystery"), 21),
        (fused("FusedMatMul", "x", "w", transBatchA=1), 21),
        (fused("Gelu", "x"), 19),
        (fused("Inverse", "x"), 21),
        (helper.make_node("Relu", ["x"], ["y"], name="plain"), 21),
    ],
)
def test_what_has_no_counterpart_stays_untouched(node, opset):
    model = model_of(node, opset=opset, w=rand(4, 3, 3, 3))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert lower_fused(model.graph) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        assert all(use.node.graph is model.graph for use in value.uses()), "a node that was given up still reads it"


def test_what_was_begun_and_given_up_leaves_nothing_behind():
    """A matrix whose rank nobody knows cannot be turned, and the one before it is not turned either."""
    model = model_of(fused("FusedMatMul", "x", "w", transA=1, transB=1), shape=("N", 5, 6), w=rand(4, 5))
    model.graph.initializers["w"].shape = None
    assert lower_fused(model.graph) == 0
    assert len(tuple(model.graph.inputs[0].uses())) == 1


def test_canonical_form_holds_no_fused_node():
    node = fused("FusedConv", "x", "w", "b", "z", activation="Clip", activation_params=[0.0, 6.0], **CONV)
    model = model_of(node, w=rand(4, 3, 3, 3), b=rand(4))
    before = outputs(model)
    Canonicalize()(model)
    assert [node.op_type for node in model.graph] == ["Conv", "Add", "Clip"]
    np.testing.assert_allclose(outputs(model), before, rtol=1e-4, atol=1e-4)
