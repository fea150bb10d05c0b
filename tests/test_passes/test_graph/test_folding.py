"""Traces of batch normalizations that an exporter folded, and what looks like one and is none."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from passes.graph.batch_norm import read_batch_norms
from passes.graph.folding import absence_in_words, folded_batch_norms, rewritten_batch_norms

from ...slow import slow

RNG = np.random.default_rng(1)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


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


LOOKALIKES = {
    "layer norm of features": "m = ReduceMean(x, one) d = Sub(x, m) s = Mul(d, d) v = ReduceMean(s, one) e = Sqrt(v) "
    "n = Div(d, e) a = Mul(n, k) b = Add(a, k) y = MatMul(b, u)",
    "layer norm, one operator": "n = LayerNormalization(x, k, k) a = Mul(n, k) b = Add(a, k) y = MatMul(b, u)",
    "scale layer": "a = MatMul(x, u) b = Mul(a, k) c = Relu(b) y = MatMul(c, u)",
    "bias": "a = MatMul(x, u) b = Add(a, k) c = Relu(b) y = MatMul(c, u)",
    "rescaled output": "a = MatMul(x, u) b = Mul(a, k) y = Add(b, k)",
}


@pytest.mark.parametrize("body", LOOKALIKES.values(), ids=LOOKALIKES)
def test_what_looks_like_one_of_features(build, body):
    weights = {"u": rand(3, 3), "k": rand(3), "one": np.array([1])}
    used = {name: array for name, array in weights.items() if f" {name})" in body or f" {name}," in body}
    model = build("(float[N,3] x) => (float[N,3] y) { " + body + " }", **used)
    assert folded_batch_norms(model) == ()


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean(h, one) d = Sub(h, m) s = Mul(d, d) v = ReduceMean(s, one) e = Sqrt(v) n = Div(d, e)",
        "n = InstanceNormalization(h, i, i)",
        "g = Reshape(h, parts) p = InstanceNormalization(g, j, j) n = Reshape(p, whole)",
    ],
    ids=["layer norm over channels", "instance norm", "group norm as torch exports it"],
)
def test_the_end_of_another_normalization_of_channels(build, body):
    weights = {
        "w": rand(4, 3, 1, 1),
        "k": rand(4, 1, 1),
        "one": np.array([1]),
        "i": rand(4),
        "j": rand(2),
        "parts": np.array([0, 2, -1]),
        "whole": np.array([-1, 4, 5, 5]),
    }
    text = (
        f"(float[N,3,5,5] x) => (float[N,4,5,5] y) {{ h = Conv(x, w) {body} a = Mul(n, k) b = Add(a, k) y = Relu(b) }}"
    )
    used = {name: array for name, array in weights.items() if f" {name})" in text or f" {name}," in text}
    assert folded_batch_norms(build(text, **used)) == ()


def test_an_image_is_normalized_behind_its_transpose(build):
    body = "t = Transpose<perm=[0,3,1,2]>(x) a = Sub(t, k) b = Div(a, k) y = Conv(b, w)"
    text = f"(float[N,5,5,3] x) => (float[N,4,5,5] y) {{ {body} }}"
    assert folded_batch_norms(build(text, k=rand(3, 1, 1), w=rand(4, 3, 1, 1))) == ()


def test_biases_everywhere_are_no_trace(build):
    text = "(float[N,3,5,5] x) => (float[N,3,5,5] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, w, b) }"
    model = build(text, w=rand(3, 3, 1, 1), b=rand(3))
    assert folded_batch_norms(model) == ()
    assert absence_in_words(model).endswith(
        "whether one was folded at export or the network never had any cannot be told from the file"
    )


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity], ids=["folded", "never had one"])
@pytest.mark.parametrize("dynamo", [False, slow(True)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_files_of_torchs_own_exporters(tmp_path, norm, dynamo):
    arguments = [4] if norm is nn.BatchNorm2d else []
    module = nn.Sequential(nn.Conv2d(3, 4, 3), norm(*arguments), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Softmax(1)).eval()
    path = tmp_path / "m.onnx"
    torch.onnx.export(module, (torch.zeros(2, 3, 5, 5),), path, dynamo=dynamo, verbose=False)
    model = ir.load(path)
    found = folded_batch_norms(model)
    assert read_batch_norms(model) == ()
    assert found == ((next(node.name for node in model.graph if node.op_type == "Conv"),) if arguments else ())
    assert ("was folded at export (seen at" in absence_in_words(model)) == bool(arguments)


@pytest.mark.parametrize("slot", ["weight", "output"])
def test_names_that_tf2onnx_gives(build, slot):
    text = "(float[N,3,5,5] x) => (float[N,3,5,5] y) { a = Conv(x, w) y = Relu(a) }"
    model = build(text, w=rand(3, 3, 1, 1))
    conv = model.graph.node("Conv_a")
    if slot == "weight":
        conv.inputs[1].name = "model/conv2d/Conv2D_weights_fused_bn"
    else:
        conv.outputs[0].name = "model/batch_normalization/FusedBatchNormV3:0"
    assert folded_batch_norms(model) == ("Conv_a",)


def test_parameters_that_the_graph_computes_are_told_as_such(build):
    text = "(float[N,3,5,5] x) => (float[N,3,5,5] y) { s = Exp(k) y = BatchNormalization(x, s, k, k, k) }"
    assert "BatchNormalization_y" in absence_in_words(build(text, k=rand(3)))


@pytest.mark.parametrize(
    ("name", "count"),
    [("oww_embedding_model", 19), ("mtcnn_onet", 0), ("mtcnn_pnet", 0), ("vit_cifar10", 0), ("dtln_2", 0)],
)
def test_real_models_without_batch_norms(shared_data, name, count):
    model = ir.from_proto(onnx.load(shared_data / "models" / f"{name}.onnx"))
    assert read_batch_norms(model) == ()
    assert len(folded_batch_norms(model)) == count


def test_pixels_that_the_file_normalizes(shared_cases):
    model = ir.from_proto(onnx.load(shared_cases / "uint8_nhwc_input_preprocessing_inside.onnx"))
    assert folded_batch_norms(model) == ()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20_cifar10", 19),
        ("resnet8_cifar10", 7),
        ("mobilenetv1_vww", 27),
        ("fastestdet_coco", 70),
    ],
)
def test_real_models_with_batch_norms(shared_data, name, count):
    model = ir.from_proto(onnx.load(shared_data / "models" / f"{name}.onnx"))
    assert len(read_batch_norms(model)) == count
    assert folded_batch_norms(model) == ()
