"""FoldBatchNorm, one test per rewrite by its number."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import pytest

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms

from ....slow import slow
from .conftest import rand, statistics, unshifting

BACKWARD = [
    ("Conv(x, w)", (6, 4, 3, 3), None),
    ("Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)", (6, 4, 3, 3), (6,)),
    ("Conv <group = 2> (x, w, b)", (6, 2, 3, 3), (6,)),
    ("Conv <group = 4> (x, w)", (8, 1, 3, 3), None),
    ("ConvTranspose <strides = [2, 2]> (x, w, b)", (4, 6, 3, 3), (6,)),
    ("ConvTranspose <group = 2> (x, w)", (4, 3, 2, 2), None),
    ("ConvTranspose <group = 4> (x, w, b)", (4, 2, 2, 2), (8,)),
]


@pytest.mark.parametrize(("layer", "weight", "bias"), BACKWARD)
def test_1_into_a_convolution(build, assert_same, operators, layer, weight, bias):
    group = int(layer.partition("group = ")[2][:1] or 1)
    channels = weight[0] if layer.startswith("Conv ") or layer.startswith("Conv(") else weight[1] * group
    weights = {"w": rand(*weight)} | ({} if bias is None else {"b": rand(*bias)})
    model = build(
        f"(float[N,4,8,8] x) => (float[N,{channels},h,w2] y) "
        f"{{ a = {layer} n = BatchNormalization(a, s, t, m, v) y = Relu(n) }}",
        **weights,
        **statistics(channels),
    )
    assert_same(model, FoldBatchNorm())
    op_type = layer.partition("(")[0].split()[0]
    assert operators(model) == {op_type: 1, "Relu": 1}
    convolution, relu = model.graph
    assert relu.inputs[0].name == "n"  # what follows keeps its name
    assert convolution.inputs[1].name == "w"
    assert convolution.inputs[2].name == ("b" if bias else f"{op_type}_a.bias")
    assert set(model.graph.initializers) == {"w", convolution.inputs[2].name}


def test_what_is_to_stay_stays(build, operators):
    model = build(
        """(float[N,1,2,2] x) => (float[N,1,2,2] y) {
        a = Conv(x, w) b = BatchNormalization(a, o, o, o, o) c = Conv(b, w) y = BatchNormalization(c, o, o, o, o)
    }""",
        w=np.ones((1, 1, 1, 1), np.float32),
        o=np.ones(1, np.float32),
    )
    first = next(node.name for node in model.graph if node.op_type == "BatchNormalization")
    FoldBatchNorm(keep=[first])(model)
    assert [node.name for node in model.graph if node.op_type == "BatchNormalization"] == [first]
    FoldBatchNorm()(model)
    assert operators(model) == {"Conv": 2}


def test_1_by_hand(build):
    # scale = -3 / sqrt(3 + 1) = -1.5 and shift = 7 - 5 * -1.5 = 14.5, so 2 -> -3 and the bias 1 -> 13
    model = build(
        """(float[N,1,2,2] x) => (float[N,1,2,2] y) {
        a = Conv(x, w, b) y = BatchNormalization <epsilon = 1.0> (a, s, t, m, v)
    }""",
        w=np.full((1, 1, 1, 1), 2, np.float32),
        b=np.array([1], np.float32),
        s=np.array([-3], np.float32),
        t=np.array([7], np.float32),
        m=np.array([5], np.float32),
        v=np.array([3], np.float32),
    )
    FoldBatchNorm()(model)
    (node,) = model.graph
    assert node.inputs[1].const_value.numpy() == -3
    assert node.inputs[2].const_value.numpy() == 13
    assert model.graph.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("layer", "weight", "bias"),
    [
        ("Gemm(x, w)", (4, 5), None),
        ("Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)", (5, 4), (5,)),
        ("Gemm <alpha = 3.0, beta = -1.0> (x, w, b)", (4, 5), (1, 5)),
        ("Gemm <beta = 0.5> (x, w, b)", (4, 5), ()),
        ("MatMul(x, w)", (4, 5), None),
    ],
)
def test_1_into_a_linear_layer(build, assert_same, operators, layer, weight, bias):
    weights = {"w": rand(*weight)} | ({} if bias is None else {"b": np.array(rand(*bias))})
    model = build(
        f"(float[N,4] x) => (float[N,5] y) {{ a = {layer} y = BatchNormalization(a, s, t, m, v) }}",
        **weights,
        **statistics(5),
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Gemm": 1}
    assert next(iter(model.graph)).name == ("MatMul_a" if "MatMul" in layer else "Gemm_a")


def test_1_tiny_and_zero_variance(build, assert_same, operators):
    numbers = statistics(4) | {"v": np.array([1e-12, 0, 1e-30, 4], np.float32)}
    model = build(
        """(float[N,4,4,4] x) => (float[N,4,4,4] y) {
        a = Conv(x, w) y = BatchNormalization <epsilon = 1e-5> (a, s, t, m, v)
    }""",
        w=rand(4, 4, 1, 1),
        **numbers,
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Conv": 1}


def test_1_two_layers_of_one_weight(build, assert_same, operators):
    model = build(
        """(float[N,4,4,4] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {
        a = Conv(x, w) y = BatchNormalization(a, s, t, m, v)
        z = Conv(x, w)
    }""",
        w=rand(4, 4, 1, 1),
        **statistics(4),
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Conv": 2}
    assert "Conv_a.weight" in model.graph.initializers


def test_1_half_precision_stays_half(build, operators):
    numbers = {name: array.astype(np.float16) for name, array in (statistics(4) | {"w": rand(4, 4, 1, 1)}).items()}
    model = build(
        "(float16[N,4,4,4] x) => (float16[N,4,4,4] y) { a = Conv(x, w) y = BatchNormalization(a, s, t, m, v) }",
        **numbers,
    )
    FoldBatchNorm()(model)
    assert operators(model) == {"Conv": 1}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert {value.dtype for value in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(
    ("chain", "constants"),
    [
        ("b = Mul(a, k) y = Add(b, j)", {"k": (6, 1, 1), "j": (1, 6, 1, 1)}),
        ("b = Mul(k, a) y = Add(j, b)", {"k": (1, 6, 1, 1), "j": (6, 1, 1)}),
        ("b = Sub(a, k) c = Div(b, j) y = BatchNormalization(c, s, t, m, v)", {"k": (6, 1, 1), "j": (6, 1, 1)}),
        ("b = Mul(a, k) y = Add(b, j)", {"k": (), "j": (1,)}),
    ],
)
@pytest.mark.parametrize(("layer", "weight"), [("Conv", (6, 4, 3, 3)), ("ConvTranspose", (4, 6, 3, 3))])
def test_2_arithmetic_after_a_convolution(build, assert_same, operators, chain, constants, layer, weight):
    numbers = {name: np.array(rand(*shape)) for name, shape in constants.items()} | {"w": rand(*weight)}
    numbers |= statistics(6) if "Batch" in chain else {}
    model = build(f"(float[N,4,8,8] x) => (float[N,6,h,w2] y) {{ a = {layer}(x, w) {chain} }}", **numbers)
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {layer: 1}


def test_2_arithmetic_after_gemm(build, assert_same, operators):
    model = build(
        "(float[N,4] x) => (float[N,5] y) { a = Gemm(x, w, k) b = Mul(a, k) y = Add(b, k) }", w=rand(4, 5), k=rand(5)
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Gemm": 1}


@pytest.mark.parametrize(
    ("expression", "constant"),
    [
        ("Add(a, k)", (1, 8)),  # along the last axis
        ("Add(a, k)", (6, 8, 8)),
        ("Mul(a, k)", (1, 1, 6, 1, 1)),  # a fifth axis
        ("Sub(k, a)", (6, 1, 1)),
        ("Div(k, a)", (6, 1, 1)),
        ("Mul(a, a)", None),
    ],
)
def test_2_other_arithmetic_stays(build, expression, constant):
    numbers = {} if constant is None else {"k": rand(*constant)}
    model = build(
        f"(float[N,4,8,8] x) => (float[{'1,' if constant and len(constant) == 5 else ''}N,6,8,8] y) "
        f"{{ a = Conv(x, w) y = {expression} }}",
        w=rand(6, 4, 1, 1),
        **numbers,
    )
    assert not FoldBatchNorm()(model).modified
    assert len(model.graph) == 2


@pytest.mark.parametrize(
    ("tail", "weight", "shape", "left"),
    [
        ("y = Conv(n, w)", (6, 4, 3, 3), "N,6,h,w2", {"Conv": 1}),
        ("y = Conv <group = 2, strides = [2, 2]> (n, w)", (6, 2, 3, 3), "N,6,h,w2", {"Conv": 1}),
        ('y = Conv <group = 4, auto_pad = "VALID"> (n, w)', (8, 1, 3, 3), "N,8,h,w2", {"Conv": 1}),
        ("f = Flatten(n) y = Gemm(f, w)", (256, 5), "N,5", {"Flatten": 1, "Gemm": 1}),
        ("f = Flatten(n) y = Gemm <transB = 1, alpha = 0.5> (f, w)", (5, 256), "N,5", {"Flatten": 1, "Gemm": 1}),
        ("f = Flatten(n) y = MatMul(f, w)", (256, 5), "N,5", {"Flatten": 1, "Gemm": 1}),
        (
            "g = GlobalAveragePool(n) f = Flatten(g) y = Gemm(f, w)",
            (4, 5),
            "N,5",
            {"GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1},
        ),
        (
            "p = AveragePool <kernel_shape = [2, 2]> (n) y = Conv(p, w)",
            (6, 4, 3, 3),
            "N,6,h,w2",
            {"AveragePool": 1, "Conv": 1},
        ),
    ],
)
def test_3_into_the_layer_behind(build, assert_same, operators, tail, weight, shape, left):
    model = build(
        f"(float[N,4,8,8] x) => (float[{shape}] y) {{ a = Sigmoid(x) n = BatchNormalization(a, s, t, m, v) {tail} }}",
        w=rand(*weight),
        **statistics(4),
    )
    assert unfolded_batch_norms(model) == ()
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Sigmoid": 1} | left


def test_3_with_a_bias_and_two_axes(build, assert_same, operators):
    model = build(
        "(float[N,4] x) => (float[N,5] y) { n = BatchNormalization(x, s, t, m, v) y = Gemm <beta = 3.0> (n, w, b) }",
        w=rand(4, 5),
        b=rand(5),
        **statistics(4),
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Gemm": 1}


def test_3_padding_is_no_obstacle_without_a_shift(build, assert_same, operators):
    text = """(float[N,4,8,8] x) => (float[N,6,8,8] y) {
        a = Relu(x) n = BatchNormalization(a, s, t, m, v) y = Conv <pads = [1, 1, 1, 1]> (n, w)
    }"""
    model = build(text, w=rand(6, 4, 3, 3), **unshifting(4))
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Relu": 1, "Conv": 1}
    assert next(reversed(model.graph)).inputs[2:] == ()  # nothing to add, so no bias is made


def test_3_backward_is_preferred(build, assert_same, operators):
    # Forward would be wrong here: the second convolution pads.
    model = build(
        """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
        a = Conv(x, w) n = BatchNormalization(a, s, t, m, v) y = Conv <pads = [1, 1, 1, 1]> (n, k)
    }""",
        w=rand(4, 4, 1, 1),
        k=rand(4, 4, 3, 3),
        **statistics(4),
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == {"Conv": 2}


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        ("Conv(b, w)", {"Conv": 1}),
        ("Conv <pads = [1, 1, 1, 1]> (b, w)", {"Sub": 1, "Conv": 1}),  # the padded zeros are pixels of the mean
    ],
)
def test_4_what_scales_the_pixels(build, assert_same, operators, layer, left):
    model = build(
        f"(float[N,3,8,8] x) => (float[N,6,h,w2] y) {{ a = Sub(x, m) b = Div(a, d) y = {layer} }}",
        w=rand(6, 3, 3, 3),
        m=rand(3, 1, 1),
        d=np.abs(rand(3, 1, 1)) + 0.5,
    )
    assert_same(model, FoldBatchNorm())
    assert operators(model) == left


@pytest.mark.parametrize(
    ("expression", "constant"),
    [("Mul(x, k)", (1, 8)), ("Sub(k, x)", (3, 1, 1)), ("Mul(x, x)", None), ("Mul(x, k)", (2, 3, 1, 1))],
)
def test_4_other_arithmetic_stays(build, expression, constant):
    model = build(
        f"(float[2,3,8,8] x) => (float[2,6,8,8] y) {{ a = {expression} y = Conv(a, w) }}",
        w=rand(6, 3, 1, 1),
        **({} if constant is None else {"k": rand(*constant)}),
    )
    assert not FoldBatchNorm()(model).modified


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet8_cifar10", 0),
        ("resnet20_cifar10", 0),
        slow(("resnet20_cifar10jpeg", 0)),
        slow(("resnet56_cifar10", 0)),
        slow(("resnet56_cifar10jpeg", 0)),
        ("mobilenetv1_vww", 0),
        slow(("fastestdet_coco", 0)),
        ("convmixer_cifar10", 16),  # between Gelu and a sum; only the last one reaches a layer behind it
    ],
)
def test_real_models(shared_data, assert_same, operators, name, left):
    proto = onnx.version_converter.convert_version(onnx.load(shared_data / "models" / f"{name}.onnx"), 21)
    simplified, _ = onnxsim.simplify(proto, skip_fuse_bn=True)
    model = ir.from_proto(simplified)
    assert_same(model, Canonicalize(), FoldBatchNorm(), rtol=1e-3)
    assert operators(model).get("BatchNormalization", 0) == left == len(unfolded_batch_norms(model))
    assert all("Gelu" in found.reason for found in unfolded_batch_norms(model))
    assert not FoldBatchNorm()(model).modified
    assert not Canonicalize()(model).modified
