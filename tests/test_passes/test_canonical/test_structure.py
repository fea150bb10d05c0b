"""Canonicalize, one test per rewrite by its number: constants, names, parameters, and all together."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import ZERO_BORDER, f32, i64, only, rand


def test_1_constant_nodes_become_initializers_of_the_same_name(build, assert_same, operators):
    model = build("""(float[N,3] x) => (float[N,3] y, float[1] z) {
        k = Constant <value = float[3] {1, 2, 3}> ()
        two = Constant <value_float = 2.0> ()
        z = Constant <value_floats = [7.0]> ()
        s = Mul(x, k)
        y = Add(s, two)
    }""")
    assert_same(model, Canonicalize())
    assert operators(model) == {"Constant": 1, "Mul": 1, "Add": 1}  # a graph output has to come from a node
    np.testing.assert_array_equal(model.graph.initializers["k"].const_value.numpy(), [1, 2, 3])
    assert model.graph.initializers["two"].const_value.numpy().shape == ()


def test_2_identity_and_inference_dropout_go(build, assert_same, operators):
    model = build(
        """(float[N,3] x) => (float[N,3] y, float[N,3] same, float[N,3] w_out) {
        a = Identity(x)
        b = Relu(a)
        c = Dropout(b, ratio)
        d, mask = Dropout(c, ratio, training)
        w2 = Identity(w)
        e = Mul(d, w2)
        y = Identity(e)
        same = Identity(x)
        w_out = Add(e, w)
    }""",
        ratio=f32(0.5),
        training=np.array(False),
        w=rand(3),
    )
    assert_same(model, Canonicalize())
    # `same` is a graph input: only Identity can give it a second name.
    assert operators(model) == {"Relu": 1, "Mul": 1, "Identity": 1, "Add": 1}
    assert only(model, "Mul").outputs[0].name == "y"


def test_2_two_outputs_of_one_value_keep_both_names(build, assert_same, operators):
    model = build("""(float[N,3] x) => (float[N,3] y, float[N,3] z) {
        c = Constant <value = float[3] {1, 2, 3}> ()
        y = Add(x, c)
        z = Identity(y)
    }""")
    assert_same(model, Canonicalize())
    assert operators(model) == {"Add": 1, "Identity": 1}


def test_2_training_dropout_and_a_mask_that_is_read_stay(build, operators):
    model = build(
        """(float[N,3] x) => (float[N,3] y, bool[N,3] mask) {
        a = Dropout(x, ratio, training)
        y, mask = Dropout(a)
    }""",
        ratio=f32(0.5),
        training=np.array(True),
    )
    Canonicalize()(model)
    assert operators(model) == {"Dropout": 2}


def test_3_initializers_are_no_inputs(build, assert_same):
    model = build("(float[N,3] x, float[3] w) => (float[N,3] y) { y = Mul(x, w) }", w=rand(3))
    assert_same(model, Canonicalize())
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_4_every_node_has_its_own_name(build):
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Sigmoid(a) c = Tanh(b) y = Relu(c) }", named=False
    )
    names = ["", "twice", "twice", "kept"]
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    Canonicalize()(model)
    assert [node.name for node in model.graph] == ["Relu_0", "twice", "twice_1", "kept"]


def test_5_shared_parameters_are_copied(build, assert_same):
    model = build(
        """(float[N,3,5,5] x) => (float[N,3,5,5] y) {
        a = Conv(x, w, s)
        b = BatchNormalization(a, s, s, m, v)
        c = Conv(b, w)
        d = BatchNormalization(c, s, s, m, v)
        y = Add(d, v4)
    }""",
        w=rand(3, 3, 1, 1),
        s=rand(3),
        m=rand(3),
        v=np.abs(rand(3)),
        v4=rand(3, 1, 1),
    )
    w = model.graph.initializers["w"].const_value.numpy().copy()
    assert_same(model, Canonicalize())
    parameters = [value for node in model.graph if node.op_type != "Add" for value in node.inputs[1:]]
    assert len(set(parameters)) == len(parameters) == 11
    first, second = (node for node in model.graph if node.op_type == "Conv")
    assert first.inputs[1].name == "w"
    first.inputs[1].const_value = ir.tensor(np.zeros((3, 3, 1, 1), np.float32))
    np.testing.assert_array_equal(second.inputs[1].const_value.numpy(), w)


def test_5_a_parameter_that_something_else_reads_stays_with_that(build):
    model = build(
        "(float[N,3,5,5] x) => (float[N,3,5,5] y, float[3,3,1,1] z) { y = Conv(x, w) z = Abs(w) }", w=rand(3, 3, 1, 1)
    )
    Canonicalize()(model)
    assert only(model, "Abs").inputs[0].name == "w"
    assert only(model, "Conv").inputs[1].name == "w.Conv_y"


def test_5_a_parameter_that_a_subgraph_reads_stays_with_that(build):
    model = build(
        """(float[N,3,5,5] x, bool c) => (float[N,3,5,5] y) {
        a = Conv(x, w)
        y = If (c) <
            then_branch = t () => (float[N,3,5,5] t1) { t1 = Conv(a, w) },
            else_branch = e () => (float[N,3,5,5] e1) { e1 = Abs(a) }
        >
    }""",
        w=rand(3, 3, 1, 1),
    )
    Canonicalize()(model)
    assert only(model, "Conv").inputs[1].name == "w.Conv_a"


@pytest.mark.parametrize(("expression", "becomes"), [("Sub(x, c)", "Add"), ("Div(x, c)", "Mul")])
def test_14_differences_and_quotients(build, assert_same, operators, expression, becomes):
    model = build(
        f"(float[N,3,2,2] x) => (float[N,3,2,2] y, float[3,1,1] z) {{ y = {expression} z = Identity(c) }}",
        c=rand(3, 1, 1),
    )
    assert_same(model, Canonicalize())
    assert operators(model)[becomes] == 1
    assert "c" in model.graph.initializers  # somebody else reads it


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N,3] x) => (float[N,3] y) { y = Sub(c, x) }",
        "(float[N,3] x) => (float[N,3] y) { y = Div(c, x) }",
        "(float[N,3] x) => (float[N,3] y) { y = Div(x, zero) }",
        "(int64[N,3] x) => (int64[N,3] y) { y = Div(x, two) }",
        "(float[N,3] x, float[N,3] z) => (float[N,3] y) { y = Sub(x, z) }",
    ],
)
def test_14_other_differences_and_quotients_stay(build, graph):
    constants = {"c": f32(2), "zero": f32([1, 0, 2]), "two": i64(2)}
    model = build(graph, **{name: array for name, array in constants.items() if name in graph})
    assert not Canonicalize()(model).modified


def test_15_what_no_output_needs_goes(build, assert_same, operators):
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = Mul(x, w) b = Sigmoid(a) y = Relu(x) }", w=rand(3), unread=rand(4)
    )
    assert_same(model, Canonicalize())
    assert operators(model) == {"Relu": 1}
    assert not model.graph.initializers


def test_a_second_run_changes_nothing(build):
    model = build(
        """(float[N,3,8,8] x) => (float[N,5] y) {
        p = Pad(x, pads) a = Conv(p, k) i = Identity(a) g = Dropout(i)
        s = Div(g, r2) e = Erf(s) o = Add(e, one) m = Mul(g, o) h = Mul(m, half)
        q = Conv(h, k4) u = Conv(q, k4) r = ReduceMean <keepdims = 0> (u, axes) f = MatMul(r, w) y = Add(f, b)
    }""",
        named=False,
        pads=ZERO_BORDER,
        k=rand(4, 3, 3, 3),
        k4=rand(4, 4, 1, 1),
        r2=f32(2**0.5),
        one=f32(1),
        half=f32(0.5),
        axes=i64(2, 3),
        w=rand(4, 5),
        b=rand(5),
    )
    assert Canonicalize()(model).modified
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not Canonicalize()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


def test_subgraphs_keep_what_they_read(build, assert_same, operators):
    model = build("""(float[N,3] x) => (float[N,3] y) {
        k = Constant <value = float[3] {1, 2, 3}> ()
        a = Relu(x)
        i = Identity(a)
        s = ReduceSum <keepdims = 0> (x)
        z = Constant <value_float = 0.0> ()
        c = Greater(s, z)
        y = If (c) <
            then_branch = t () => (float[N,3] t1) { t0 = Mul(i, k) t1 = Identity(t0) },
            else_branch = e () => (float[N,3] e1) { e1 = Add(i, k) }
        >
    }""")
    assert_same(model, Canonicalize())
    assert operators(model) == {"Relu": 1, "ReduceSum": 1, "Greater": 1, "If": 1}


def test_an_old_opset_is_refused(build):
    model = build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=17)
    with pytest.raises(ir.passes.PreconditionError, match=r"opset 17.*convert first"):
        Canonicalize()(model)


@pytest.mark.parametrize(
    ("name", "gone", "left"),
    [
        ("convmixer_cifar10", {"Erf", "Constant"}, {"Gelu": 17, "BatchNormalization": 17}),
        ("resnet20_cifar10", {"AveragePool", "Constant"}, {"Conv": 19, "GlobalAveragePool": 1}),
        ("mobilenetv1_vww", {"Constant"}, {"Conv": 27}),
    ],
)
def test_real_models(shared_data, assert_same, operators, name, gone, left):
    proto = onnx.version_converter.convert_version(onnx.load(shared_data / "models" / f"{name}.onnx"), 21)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    inputs, outputs = ([value.name for value in values] for values in (model.graph.inputs, model.graph.outputs))
    assert_same(model, Canonicalize())
    found = operators(model)
    assert not gone & set(found)
    assert left.items() <= found.items()
    assert [value.name for value in model.graph.inputs] == inputs
    assert [value.name for value in model.graph.outputs] == outputs
    assert not Canonicalize()(model).modified
