"""Attention in one operator becomes its products: equal results in ONNX Runtime, and what has more to it stays."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fused import lower_fused
from passes.graph.attention import find_attention

from .conftest import rand
from .test_fused import fused, outputs

FLAT, BY_HEAD = ("N", 5, 8), ("N", 2, 5, 4)


def model_of(node, shape, *, opset=21, inputs=("q", "k", "v"), **weights):
    """Computed inputs of one shape, as far as the node reads them, to all its outputs."""
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in inputs if name in node.input],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.output if name],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def attention(*inputs, outputs=("y",), **attributes):
    return helper.make_node("Attention", inputs, outputs, name="attention", **attributes)


def lowered(model):
    before = outputs(model)
    assert lower_fused(model.graph) == 1
    after = outputs(model)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    Canonicalize()(model)
    np.testing.assert_allclose(outputs(model), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    assert len(find_attention(model.graph)) == 1
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}])
@pytest.mark.parametrize(
    ("shape", "heads"), [(FLAT, {"q_num_heads": 2, "kv_num_heads": 2}), (BY_HEAD, {})], ids=["flat", "by head"]
)
def test_attention_of_onnx(shape, heads, scale, masked):
    inputs = ["q", "k", "v", *["mask"] * masked]
    model = model_of(attention(*inputs, **heads, **scale), shape, opset=23, mask=rand(1, 2, 5, 5))
    found = lowered(model)
    assert (found.count("MatMul"), found.count("Softmax"), found.count("Add")) == (2, 1, masked)


SEEN = np.tri(5, dtype=bool)
NOTHING_SEEN = SEEN & (np.arange(5) != 2)[:, None]


def as_numbers(mask):
    return np.where(mask, np.float32(0), np.float32(-np.inf))


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        (np.ones((5, 5), bool), set()),
        (SEEN, {"Add"}),
        (as_numbers(SEEN), {"Add"}),
        (NOTHING_SEEN, {"Add", "IsNaN", "Where"}),  # one query sees no key, and gets zeros
        (as_numbers(NOTHING_SEEN), {"Add", "IsNaN", "Where"}),
    ],
)
def test_attention_with_keys_that_are_not_seen(mask, kept):
    model = model_of(attention("q", "k", "v", "mask"), BY_HEAD, opset=23, mask=mask)
    assert kept == {"Add", "IsNaN", "Where"} & set(lowered(model))


def test_attention_with_a_mask_that_is_an_input():
    """Of padding, as a text network has it: what is seen follows from another input."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[N,2,5,4] q, float[N,2,5,4] k, float[N,2,5,4] v, float[N,1,5,5] seen) => (float[N,2,5,4] y) {
            zero = Constant <value_float=0.0> ()
            mask = Greater (seen, zero)
            y = Attention (q, k, v, mask)
        }"""
    )
    found = lowered(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert "Attention" not in found and "IsNaN" in found


@pytest.mark.parametrize("more", [[], ["b"], ["b", "", "mask"], ["", "", "mask"]])
def test_multi_head_attention_of_onnx_runtime(more):
    node = fused("MultiHeadAttention", "q", "k", "v", *more, num_heads=2)
    assert lowered(model_of(node, FLAT, b=rand(24), mask=rand(1, 2, 5, 5))).count("MatMul") == 2


@pytest.mark.parametrize("scale", [{}, {"scale": 0.3}])
def test_attention_of_onnx_runtime_gets_a_layer_for_each_of_its_weights(scale):
    node = fused("Attention", "q", "w", "b", num_heads=2, **scale)
    assert lowered(model_of(node, FLAT, w=rand(8, 24), b=rand(24))).count("Softmax") == 1


@pytest.mark.parametrize("bias", [False, True])
def test_a_sum_with_its_normalization(bias):
    inputs = ["q", "k", "scale", "shift", *["b"] * bias]
    node = helper.make_node("SkipLayerNormalization", inputs, ["y"], name="skip", domain="com.microsoft", epsilon=1e-3)
    model = model_of(node, FLAT, scale=rand(8), shift=rand(8), b=rand(8))
    before = outputs(model)
    assert lower_fused(model.graph) == 1
    assert [node.op_type for node in model.graph] == ["Add"] * (1 + bias) + ["LayerNormalization"]
    np.testing.assert_allclose(outputs(model), before, rtol=1e-4, atol=1e-5)


def test_a_sum_that_is_read_itself():
    skip = helper.make_node(
        "SkipLayerNormalization", ["q", "k", "scale"], ["n", "", "", "s"], name="skip", domain="com.microsoft"
    )
    graph = helper.make_graph(
        [skip, helper.make_node("Mul", ["n", "s"], ["y"], name="mul")],
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, FLAT) for name in ("q", "k")],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(rand(8), "scale")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    before = outputs(model)
    assert lower_fused(model.graph) == 1 and [node.op_type for node in model.graph][:2] == ["Add", "LayerNormalization"]
    np.testing.assert_allclose(outputs(model), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        attention("q", "k", "v", is_causal=1),
        attention("q", "k", "v", softcap=2.0),
        attention("q", "k", "v", "short"),
        attention("q", "k", "v", outputs=("y", "present")),
        fused("Attention", "q", "w", "b", num_heads=2, unidirectional=1),
        fused("MultiHeadAttention", "q", "k", "v", num_heads=2),
    ],
)
def test_what_has_more_to_it_stays(node):
    model = model_of(node, BY_HEAD, opset=23, short=rand(5, 3), w=rand(8, 24), b=rand(24))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert lower_fused(model.graph) == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
