"""One test per rewrite of Canonicalize, by its number."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.canonicalize import Canonicalize

RNG = np.random.default_rng(0)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def f32(number):
    return np.array(number, dtype=np.float32)


def i64(*numbers):
    return np.array(numbers, dtype=np.int64)


def only(model, op_type):
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


# 1


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


# 2


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


# 3


def test_3_initializers_are_no_inputs(build, assert_same):
    model = build("(float[N,3] x, float[3] w) => (float[N,3] y) { y = Mul(x, w) }", w=rand(3))
    assert_same(model, Canonicalize())
    assert [value.name for value in model.graph.inputs] == ["x"]


# 4


def test_4_every_node_has_its_own_name(build):
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Sigmoid(a) c = Tanh(b) y = Relu(c) }", named=False
    )
    names = ["", "twice", "twice", "kept"]
    for node, name in zip(model.graph, names, strict=True):
        node.name = name
    Canonicalize()(model)
    assert [node.name for node in model.graph] == ["Relu_0", "twice", "twice_1", "kept"]


# 5


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


# 6


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("stride", "size", "kernel"), [(1, 8, 3), (2, 8, 3), (2, 9, 4), (3, 7, 2), (1, 6, 2)])
def test_6_conv_is_explicit(build, assert_same, auto_pad, stride, size, kernel):
    model = build(
        f"""(float[N,4,{size},{size}] x) => (float[N,6,h,w] y) {{
        y = Conv <auto_pad = "{auto_pad}", strides = [{stride}, {stride}], group = 2> (x, k)
    }}""",
        k=rand(6, 2, kernel, kernel),
    )
    assert_same(model, Canonicalize())
    attributes = only(model, "Conv").attributes
    assert set(attributes) == {"kernel_shape", "strides", "dilations", "group", "pads"}
    assert tuple(attributes["kernel_shape"].as_ints()) == (kernel, kernel)


def test_6_same_padding_by_hand(build):
    # 8 pixels, window 3, stride 2: 4 outputs reach over 9 pixels, and SAME_UPPER puts the one missing at the end.
    text = '(float[N,1,8,8] x) => (float[N,1,4,4] y) { y = Conv <auto_pad = "%s", strides = [2, 2]> (x, k) }'
    for auto_pad, pads in (("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0))):
        model = build(text % auto_pad, k=rand(1, 1, 3, 3))
        Canonicalize()(model)
        assert tuple(only(model, "Conv").attributes["pads"].as_ints()) == pads


def test_6_same_padding_of_an_unknown_size_stays_unless_the_stride_is_one(build, assert_same):
    model = build(
        """(float[N,1,h,w] x) => (float[N,1,h2,w2] y) {
        a = Conv <auto_pad = "SAME_UPPER", dilations = [2, 2]> (x, k)
        y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (a, k)
    }""",
        k=rand(1, 1, 2, 2),
    )
    Canonicalize()(model)
    first, second = model.graph
    assert tuple(first.attributes["pads"].as_ints()) == (1, 1, 1, 1)
    assert second.attributes["auto_pad"].as_string() == "SAME_UPPER"


def test_6_conv_transpose(build, assert_same):
    model = build(
        """(float[N,4,5,5] x) => (float[N,6,h,w] y, float[N,6,10,10] z) {
        y = ConvTranspose <strides = [2, 2], group = 2> (x, k)
        z = ConvTranspose <strides = [2, 2], group = 2, auto_pad = "SAME_UPPER"> (x, k)
    }""",
        k=rand(4, 3, 3, 3),
    )
    assert_same(model, Canonicalize())
    first, second = model.graph
    assert tuple(first.attributes["pads"].as_ints()) == (0, 0, 0, 0)
    assert "auto_pad" in second.attributes and "pads" not in second.attributes


# 7

PADDED = "(float[N,3,8,8] x) => (float[N,{channels},h,w] y) {{ p = {pad} y = {reader} }}"
ZERO_BORDER = i64(0, 0, 1, 2, 0, 0, 3, 0)


@pytest.mark.parametrize(
    ("pad", "constants"),
    [
        ("Pad(x, pads)", {"pads": ZERO_BORDER}),
        ("Pad(x, pads, zero)", {"pads": ZERO_BORDER, "zero": f32(0)}),
        ("Pad(x, pads, zero, axes)", {"pads": i64(1, 2, 3, 0), "zero": f32(0), "axes": i64(-2, -1)}),
        ('Pad <mode = "constant"> (x, pads, , axes)', {"pads": i64(2, 1, 0, 3), "axes": i64(3, 2)}),
    ],
)
@pytest.mark.parametrize(
    ("reader", "channels", "pads"),
    [
        ("Conv(p, k)", 4, (1, 2, 3, 0)),
        ("Conv <pads = [1, 1, 0, 0]> (p, k)", 4, (2, 3, 3, 0)),
        ("AveragePool <kernel_shape = [4, 4], strides = [2, 2]> (p)", 3, (1, 2, 3, 0)),
        ("AveragePool <kernel_shape = [5, 5], pads = [0, 0, 1, 1], count_include_pad = 1> (p)", 3, (1, 2, 4, 1)),
    ],
)
def test_7_zero_pad_merges(build, assert_same, operators, pad, constants, reader, channels, pads):
    weights = {"k": rand(4, 3, 3, 3)} if "Conv" in reader else {}
    model = build(PADDED.format(pad=pad, reader=reader, channels=channels), **constants, **weights)
    assert_same(model, Canonicalize())
    assert "Pad" not in operators(model)
    (node,) = model.graph
    assert tuple(node.attributes["pads"].as_ints()) == pads


@pytest.mark.parametrize(
    ("pad", "constants", "reader", "channels"),
    [
        ("Pad(x, pads, one)", {"pads": ZERO_BORDER, "one": f32(1)}, "Conv(p, k)", 4),
        ('Pad <mode = "reflect"> (x, pads)', {"pads": ZERO_BORDER}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": i64(0, 0, -1, 0, 0, 0, 0, 0)}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": i64(1, 0, 1, 1, 0, 0, 0, 0)}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "MaxPool <kernel_shape = [4, 4]> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [3, 3]> (p)", 3),  # 3 zeros fill a window
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [5, 5], pads = [1, 1, 1, 1]> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [4, 4], ceil_mode = 1> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (p, k)', 4),
    ],
)
def test_7_other_pads_stay_or_stay_right(build, assert_same, operators, pad, constants, reader, channels):
    weights = {"k": rand(4, 3, 3, 3)} if "Conv" in reader else {}
    model = build(PADDED.format(pad=pad, reader=reader, channels=channels), named=False, **constants, **weights)
    assert_same(model, Canonicalize())
    # SAME over a map of known size is resolved first, and then the Pad merges.
    assert ("Pad" in operators(model)) == ("SAME" not in reader)


def test_7_a_pad_with_a_second_reader_stays(build, operators):
    model = build(
        "(float[N,3,8,8] x) => (float[N,4,h,w] y, float[N,3,h2,w2] z) { p = Pad(x, pads) y = Conv(p, k) z = Relu(p) }",
        pads=ZERO_BORDER,
        k=rand(4, 3, 3, 3),
    )
    Canonicalize()(model)
    assert operators(model) == {"Pad": 1, "Conv": 1, "Relu": 1}


def test_7_a_padded_weight_is_no_padded_map(build, operators):
    model = build(
        "(float[N,3,8,8] x, float[4,3,1,1] k) => (float[N,4,h,w] y) { p = Pad(k, pads) y = Conv(x, p) }",
        pads=ZERO_BORDER,
    )
    Canonicalize()(model)
    assert operators(model) == {"Pad": 1, "Conv": 1}


# 8


@pytest.mark.parametrize(
    ("expression", "shape", "wanted"),
    [
        ("ReduceMean(x, axes)", "N,3,1,1", {"GlobalAveragePool": 1}),
        ("ReduceMean <keepdims = 0> (x, axes)", "N,3", {"GlobalAveragePool": 1, "Flatten": 1}),
        ("AveragePool <kernel_shape = [4, 6]> (x)", "N,3,1,1", {"GlobalAveragePool": 1}),
        (
            "AveragePool <kernel_shape = [4, 6], strides = [4, 6], ceil_mode = 1> (x)",
            "N,3,1,1",
            {"GlobalAveragePool": 1},
        ),
        ("AveragePool <kernel_shape = [4, 5]> (x)", "N,3,1,2", {"AveragePool": 1}),
        ("AveragePool <kernel_shape = [4, 6], pads = [0, 0, 1, 0]> (x)", "N,3,2,1", {"AveragePool": 1}),
    ],
)
def test_8_global_pooling(build, assert_same, operators, expression, shape, wanted):
    axes = {"axes": i64(-1, 2)} if "axes" in expression else {}
    model = build(f"(float[N,3,4,6] x) => (float[{shape}] y) {{ y = {expression} }}", named=False, **axes)
    assert_same(model, Canonicalize())
    assert operators(model) == wanted
    assert model.graph.outputs[0].name == "y"


def test_8_other_means_stay(build, operators):
    model = build(
        "(float[N,3,4,6] x) => (float[N,1,1,6] y, float[1,1,1,1] z) { y = ReduceMean(x, axes) z = ReduceMean(x) }",
        axes=i64(1, 2),
    )
    Canonicalize()(model)
    assert operators(model) == {"ReduceMean": 2}


def test_8_the_mean_of_integers_stays(build, operators):
    model = build("(int32[N,3,4,6] x) => (int32[N,3,1,1] y) { y = ReduceMean(x, axes) }", axes=i64(2, 3))
    Canonicalize()(model)
    assert operators(model) == {"ReduceMean": 1}


# 9


@pytest.mark.parametrize("target", [(0, -1), (-1, 24), (0, 24), (2, 24)])
def test_9_reshape_to_a_constant_shape(build, assert_same, operators, target):
    model = build("(float[N,4,2,3] x) => (float[a,b] y) { y = Reshape(x, t) }", t=i64(*target))
    assert_same(model, Canonicalize())
    assert operators(model) == {"Flatten": 1}


@pytest.mark.parametrize("target", [(1, -1), (-1, 12), (0, 2, -1), (-1,)])
def test_9_other_reshapes_stay(build, operators, target):
    shape = ",".join("abc"[: len(target)])
    model = build(f"(float[N,4,2,3] x) => (float[{shape}] y) {{ y = Reshape(x, t) }}", t=i64(*target))
    Canonicalize()(model)
    assert operators(model) == {"Reshape": 1}


@pytest.mark.parametrize(
    "size",
    [
        "s = Shape(x) g = Gather(s, zero) n = Unsqueeze(g, first)",
        "s = Shape(x) n = Gather(s, first)",
        "s = Shape(x) n = Slice(s, first, one, first)",
        "n = Shape <start = 0, end = 1> (x)",
        "s = Shape(image) n = Gather(s, first)",
    ],
)
def test_9_reshape_to_the_batch_and_the_rest(build, assert_same, operators, size):
    weights = {"zero": np.array(0), "first": i64(0), "one": i64(1), "rest": i64(-1)}
    text = (
        "(float[N,4,2,3] image) => (float[a,b] y) { x = Relu(image) "
        + size
        + " t = Concat <axis = 0> (n, rest) y = Reshape(x, t) }"
    )
    model = build(text, **weights)
    assert_same(model, Canonicalize())
    assert operators(model) == {"Relu": 1, "Flatten": 1}
    assert set(model.graph.initializers) == set()


def test_9_the_size_of_another_axis_is_not_the_batch(build, operators):
    model = build(
        """(float[N,4,2,3] x) => (float[a,b] y) {
        s = Shape(x) n = Gather(s, one) t = Concat <axis = 0> (n, rest) y = Reshape(x, t)
    }""",
        one=i64(1),
        rest=i64(-1),
    )
    Canonicalize()(model)
    assert operators(model)["Reshape"] == 1


def test_9_the_batch_of_another_input_is_not_the_batch(build, operators):
    model = build(
        """(float[N,4,2,3] x, float[M,4] other) => (float[a,b] y) {
        s = Shape(other) n = Gather(s, first) t = Concat <axis = 0> (n, rest) y = Reshape(x, t)
    }""",
        first=i64(0),
        rest=i64(-1),
    )
    Canonicalize()(model)
    assert operators(model)["Reshape"] == 1


# 10


@pytest.mark.parametrize("order", ["Add(m, b)", "Add(b, m)"])
@pytest.mark.parametrize("bias", [(5,), (1, 5)])
def test_10_matmul_and_add_become_gemm(build, assert_same, operators, order, bias):
    model = build(f"(float[N,3] x) => (float[N,5] y) {{ m = MatMul(x, w) y = {order} }}", w=rand(3, 5), b=rand(*bias))
    assert_same(model, Canonicalize())
    assert operators(model) == {"Gemm": 1}
    assert only(model, "Gemm").name == "MatMul_m"


def test_10_more_axes_a_second_reader_or_a_bias_per_row_stay(build, operators):
    model = build(
        """(float[N,7,3] t, float[2,3] x) => (float[N,7,5] y, float[2,5] z, float[2,5] m2, float[2,5] u) {
        m = MatMul(t, w) y = Add(m, b)
        m2 = MatMul(x, w) z = Add(m2, b)
        m3 = MatMul(x, w) u = Add(m3, c)
    }""",
        w=rand(3, 5),
        b=rand(5),
        c=rand(2, 1),
    )
    Canonicalize()(model)
    assert operators(model) == {"MatMul": 3, "Add": 3}


# 11 to 13


GELUS = [
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(v, p) y = Mul(m, half)",
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(half, p) y = Mul(v, m)",
    "s = Mul(v, r12) e = Erf(s) p = Add(one, e) h = Mul(v, half) y = Mul(h, p)",
    "s = Mul(r12, v) e = Erf(s) p = Add(e, one) h = Div(v, two) y = Mul(p, h)",
    "s = Div(v, r2) e = Erf(s) p = Add(e, one) m = Mul(p, v) y = Div(m, two)",
]


@pytest.mark.parametrize("chain", GELUS)
def test_11_gelu(build, assert_same, operators, chain):
    numbers = {"r2": 2**0.5, "r12": 0.5**0.5, "one": 1, "half": 0.5, "two": 2}
    weights = {name: f32(number) for name, number in numbers.items() if name in chain}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + chain + " }", **weights)
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"Neg": 1, "Gelu": 1}
    assert only(model, "Gelu").outputs[0].name == "y"


@pytest.mark.parametrize(
    ("numbers", "opset"),
    [
        ({"r2": 1.0, "one": 1, "half": 0.5}, 21),
        ({"r2": 2**0.5, "one": 2, "half": 0.5}, 21),
        ({"r2": 2**0.5, "one": 1, "half": 0.25}, 21),
        ({"r2": 2**0.5, "one": 1, "half": 0.5}, 19),
    ],
)
def test_11_almost_gelu_stays(build, operators, numbers, opset):
    weights = {name: f32(number) for name, number in numbers.items()}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + GELUS[0] + " }", opset=opset, **weights)
    Canonicalize()(model)
    assert "Gelu" not in operators(model)


def test_11_a_factor_with_a_second_reader_stays(build, operators):
    chain = "s = Div(v, r2) e = Erf(s) p = Add(e, one) h = Mul(v, half) y = Mul(p, h) z = Relu(h)"
    numbers = {"r2": f32(2**0.5), "one": f32(1), "half": f32(0.5)}
    model = build("(float[N,3] x) => (float[N,3] y, float[N,3] z) { v = Neg(x) " + chain + " }", **numbers)
    Canonicalize()(model)
    assert "Gelu" not in operators(model)


def test_a_division_by_zero_is_left_alone(build, operators):
    model = build("(float[N,3] x) => (float[N,3] y) { y = Div(x, zero) }", zero=f32(0))
    assert not Canonicalize()(model).modified
    assert operators(model) == {"Div": 1}


SWISHES = [
    "a = Add(v, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(v, d)",
    "a = Add(three, v) c = Clip(a, zero, six) m = Mul(v, c) y = Div(m, six)",
    "a = Add(v, three) c = Clip(a, zero, six) m = Mul(c, v) y = Mul(m, sixth)",
    "a = Add(v, three) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, v)",
    "d = HardSigmoid <alpha = 0.166666667, beta = 0.5> (v) y = Mul(v, d)",
]


@pytest.mark.parametrize("chain", SWISHES)
def test_12_hard_swish(build, assert_same, operators, chain):
    numbers = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}
    weights = {name: f32(number) for name, number in numbers.items() if name in chain.replace("sixth", "")}
    weights |= {"sixth": f32(1 / 6)} if "sixth" in chain else {}
    model = build("(float[N,3] x) => (float[N,3] y) { v = Neg(x) " + chain + " }", **weights)
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"Neg": 1, "HardSwish": 1}


def test_12_another_gate_stays(build, operators):
    model = build("(float[N,3] x) => (float[N,3] y) { d = HardSigmoid(x) y = Mul(x, d) }")  # alpha 0.2
    Canonicalize()(model)
    assert operators(model) == {"HardSigmoid": 1, "Mul": 1}


def test_13_hard_sigmoid(build, assert_same, operators):
    model = build(
        "(float[N,3] x, float[N,3] z) => (float[N,3] y) "
        "{ a = Add(x, three) c = Clip(a, zero, six) d = Div(c, six) y = Mul(z, d) }",
        three=f32(3),
        zero=f32(0),
        six=f32(6),
    )
    assert_same(model, Canonicalize(), rtol=1e-5)
    assert operators(model) == {"HardSigmoid": 1, "Mul": 1}


# 14


def test_14_what_no_output_needs_goes(build, assert_same, operators):
    model = build(
        "(float[N,3] x) => (float[N,3] y) { a = Mul(x, w) b = Sigmoid(a) y = Relu(x) }", w=rand(3), unread=rand(4)
    )
    assert_same(model, Canonicalize())
    assert operators(model) == {"Relu": 1}
    assert not model.graph.initializers


# all together


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
