"""SplitChannels: by hand, the function unchanged, and what splitting is for: smaller steps without another error."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.ocs import ChannelSplit, SplitChannels, channel_splits, widened_values

RNG = np.random.default_rng(6)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def split(copies, scale):
    return ChannelSplit(copies=np.array(copies), scale=np.asarray(scale, float))


def test_by_hand(build):
    # the weight 5 on a grid of scale 2 becomes 5/2 ± 2/4, that is 2 and 3; the -1 beside it stays
    model = build(
        "(float[N,1,2,2] x) => (float[N,1,2,2] y) { a = Conv(x, v, b) r = Relu(a) y = Conv(r, w) }",
        v=np.array([7, 8], np.float32).reshape(2, 1, 1, 1),
        b=np.array([0, 4], np.float32),
        w=np.array([-1, 5], np.float32).reshape(1, 2, 1, 1),
    )
    splits = {"Conv_y": split([1, 2], [2.0])}
    assert {name: sources.tolist() for name, sources in widened_values(model, splits).items()} == {
        "a": [0, 1, 1],
        "r": [0, 1, 1],
    }
    assert SplitChannels(splits)(model).modified
    first, _, second = model.graph
    assert first.inputs[1].const_value.numpy().ravel().tolist() == [7, 8, 8]
    assert first.inputs[2].const_value.numpy().tolist() == [0, 4, 4]
    assert second.inputs[1].const_value.numpy().ravel().tolist() == [-1, 2, 3]
    assert tuple(first.outputs[0].shape)[1] == 3


def test_greatest_weights_are_split_first(build):
    # (8, 3, 2): 8 goes in two, then in three, for 4 is still the greatest; with 6 the same, 6 / 2 = 3 ties
    model = build(
        "(float[N,3,2,2] x) => (float[N,1,2,2] y) { a = Relu(x) y = Conv(a, w) }",
        w=np.array([2, -8, 3], np.float32).reshape(1, 3, 1, 1),
    )
    for ratio, wanted in ((0.01, [1, 2, 1]), (0.34, [1, 3, 1]), (1.0, [1, 3, 2])):
        found = channel_splits(model, ratio=ratio, bits=4, per_channel=False)["Conv_y"]
        assert found.copies.tolist() == wanted
    assert found.scale.shape == ()
    assert found.scale == 4 / 8  # after the splits 8 / 3 is the greatest: the threshold is 4
    free = channel_splits(model, ratio=1.0, bits=4, per_channel=False, power_of_two=False)["Conv_y"]
    assert free.scale == pytest.approx(8 / 3 / 8)


def test_per_channel_splits_what_helps_most_rows(build):
    weight = np.array([[9, 1, 1], [1, 3, 1], [1, 3, 1], [1, 3, 1]], np.float32).reshape(4, 3, 1, 1)
    model = build("(float[N,3,2,2] x) => (float[N,4,2,2] y) { a = Relu(x) y = Conv(a, w) }", w=weight)
    # per row the greatest are 9, 3, 3, 3: halved, 81 - 20.25 against 3 * (9 - 2.25)
    assert channel_splits(model, ratio=0.3, bits=8)["Conv_y"].copies.tolist() == [2, 1, 1]
    assert channel_splits(model, ratio=0.3, bits=8)["Conv_y"].scale.tolist() == [8 / 128, 4 / 128, 4 / 128, 4 / 128]


CHAINS = [
    ("r = Relu(a) y = Conv(r, w, c)", 0),
    ("r = HardSwish(a) m = MaxPool <kernel_shape = [2, 2]> (r) y = Conv <pads = [1, 1, 1, 1]> (m, w)", 0),
    ("p = GlobalAveragePool(a) f = Flatten(p) y = Gemm <transB = 1, alpha = 0.5> (f, t, c)", 0),
    ("f = Flatten(a) y = Gemm (f, h)", 1),  # the features, not the channels, are split
    ("r = Relu(a) y = Conv(r, w) z = Neg(r)", 1),  # somebody else reads it
    ("r = PRelu(a, slope) y = Conv(r, w)", 1),  # a slope for each channel
    ("r = Add(a, a) y = Conv(r, w)", 1),
]


@pytest.mark.parametrize("source", ["Conv (x, v, b)", "Conv <group = 2> (x, q)", "ConvTranspose (x, u, b)"])
@pytest.mark.parametrize(("body", "gathers"), CHAINS)
def test_the_function_stays(build, assert_same, operators, source, body, gathers):
    constants = {
        "w": rand(3, 6, 3, 3), "t": rand(3, 6), "h": rand(6 * 64, 3), "c": rand(3), "slope": rand(6, 1, 1),
        "v": rand(6, 2, 1, 1), "q": rand(6, 1, 1, 1), "u": rand(2, 6, 1, 1), "b": np.zeros(6, np.float32),
    }  # fmt: skip
    words = f"{source} {body}".replace("(", " ").replace(")", " ").replace(",", " ").split()
    outputs = "float[N,3] y" if "Gemm" in body else "float[N,3,h2,w2] y"
    model = build(
        f"(float[N,2,8,8] x) => ({outputs}{', float[N,6,8,8] z' if ' z =' in body else ''}) {{ a = {source} {body} }}",
        **{name: array for name, array in constants.items() if name in words},
    )
    last = next(node for node in reversed(model.graph) if node.outputs[0].name == "y")
    found = channel_splits(model, ratio=0.4, bits=4)
    assert set(found) == {last.name}
    assert found[last.name].copies.sum() == len(found[last.name].copies) + np.ceil(0.4 * len(found[last.name].copies))
    assert_same(model, SplitChannels(found), rtol=2e-5)
    assert operators(model).get("Gather", 0) == max(gathers, int("group" in source))


def test_of_layers_one_after_the_other(build, assert_same):
    """The middle layer reads copies and gives copies."""
    model = build(
        "(float[N,2,8,8] x) => (float[N,3,8,8] y) "
        "{ a = Conv(x, v) r = Relu(a) m = Conv(r, u, b) s = Relu(m) y = Conv(s, w) }",
        v=rand(6, 2, 1, 1), u=rand(5, 6, 1, 1), b=rand(5), w=rand(3, 5, 1, 1),
    )  # fmt: skip
    found = channel_splits(model, ratio=0.5, bits=4)
    assert set(found) == {"Conv_m", "Conv_y"}
    assert_same(model, SplitChannels(found), rtol=2e-5)
    assert model.graph.initializers["u"].shape == (5 + 3, 6 + 3, 1, 1)


def test_rounded_copies_sum_to_the_rounded_weight(build):
    """What the offsets are for; without them the error of a split weight doubles."""
    weight = RNG.uniform(-1, 1, (1, 200, 1, 1)).astype(np.float32)
    model = build("(float[N,200,2,2] x) => (float[N,1,2,2] y) { a = Relu(x) y = Conv(a, w) }", w=weight)
    copies = RNG.integers(1, 5, 200)
    SplitChannels({"Conv_y": split(copies, [0.05])})(model)
    parts = np.rint(model.graph.initializers["w"].const_value.numpy().ravel() / 0.05)
    sums = np.add.reduceat(parts, np.cumsum(copies) - copies)
    assert sums.tolist() == np.rint(weight.ravel() / np.float32(0.05)).tolist()


def test_what_is_passed_over(build):
    model = build(
        "(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) "
        "{ z = Conv(x, w) r = Relu(z) y = Conv <group = 2> (r, g) }",
        w=rand(4, 4, 1, 1), g=rand(4, 2, 1, 1),
    )  # fmt: skip
    assert channel_splits(model, ratio=0.1, bits=4) == {}
    assert not SplitChannels({"Conv_y": split([1, 1, 1, 1], [1.0])})(model).modified
    with pytest.raises(ir.passes.PreconditionError, match="lacks: Conv_q"):
        SplitChannels({"Conv_q": split([1, 2], [1.0])})(model)


def test_real_network(shared_data, assert_same, operators):
    model = load_model(shared_data / "models" / "resnet8_cifar10.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    splits = channel_splits(model, ratio=0.05, bits=4)
    assert len(splits) == 9  # all but the first of nine convolutions, and the classifier
    assert len(widened_values(model, splits)) == 6  # behind the first convolution of a block, and its Relu
    assert_same(model, SplitChannels(splits), rtol=1e-5)
    assert operators(model)["Gather"] == 6
