"""Which layers are low and which pay, on networks of each kind."""

import numpy as np
import pytest

from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.dfmpc.layer_pairs import find_layer_pairs

RNG = np.random.default_rng(0)


def low(pairs):
    return [layer.node.name for layer in pairs.low]


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("plain", ["Conv_c_b", "Conv_c_d"], ["Conv_c_b", "Conv_c_d"]),
        ("basic", ["Conv_c_a"], ["Conv_c_b"]),
        ("bottleneck", ["Conv_c_b"], ["Conv_c_b", "Conv_c_c"]),
        ("dense", ["Conv_c_new1", "Conv_c_new2"], ["Conv_c_new1", "Conv_c_new2"]),
        ("inverted", ["Conv_c_wide"], ["Conv_c_out"]),
    ],
)
def test_both_assignments_of_each_kind(network, kind, first, last):
    model = network(kind)
    assert low(find_layer_pairs(model, "first")) == first
    assert low(find_layer_pairs(model, "last")) == last
    pairs = find_layer_pairs(model, "first")
    assert [layer.node.name for layer in pairs.legal] == first
    assert len(pairs.low) + len(pairs.high) == sum(node.op_type in ("Conv", "Gemm") for node in model.graph)


@pytest.mark.parametrize(
    ("kind", "readers"),
    [
        ("plain", {"Conv_c_b": [("Conv_c_c", 0)], "Conv_c_d": [("Gemm_y", 0)]}),
        ("basic", {"Conv_c_a": [("Conv_c_b", 0)]}),
        ("bottleneck", {"Conv_c_b": [("Conv_c_c", 0)]}),
        ("dense", {"Conv_c_new1": [("Conv_c_mid2", 5), ("Gemm_y", 5)], "Conv_c_new2": [("Gemm_y", 9)]}),
        ("inverted", {"Conv_c_wide": [("Conv_c_deep", 0)]}),
    ],
)
def test_who_pays_and_with_which_inputs(network, kind, readers):
    pairs = find_layer_pairs(network(kind), "first")
    found = {layer.node.name: [(reader.node.name, reader.start) for reader in layer.consumers] for layer in pairs.low}
    assert found == readers


def test_norms_behind_a_concat_are_known_with_their_first_channel(network):
    pairs = find_layer_pairs(network("dense"), "first")
    found = {
        layer.node.name: [(norm.node.name, norm.start, [c.node.name for c in norm.consumers]) for norm in layer.norms]
        for layer in pairs.low
    }
    end = "BatchNormalization_n_end"
    assert found == {
        "Conv_c_new1": [("BatchNormalization_n_in2", 5, ["Conv_c_mid2"]), (end, 5, ["Gemm_y"])],
        "Conv_c_new2": [(end, 9, ["Gemm_y"])],
    }


def test_behind_flatten_each_channel_is_a_run_of_features(build):
    model = build(
        """(float[N,2,3,3] x) => (float[N,5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        c = Conv <pads = [1, 1, 1, 1]> (a, w)
        n = BatchNormalization (c, s, s, s, s)
        f = Flatten (n)
        y = Gemm (f, g)
    }""",
        u=np.ones((2, 2, 3, 3), np.float32),
        w=np.ones((4, 2, 3, 3), np.float32),
        s=np.ones(4, np.float32),
        g=np.ones((36, 5), np.float32),
    )
    (layer,) = find_layer_pairs(model, "first").legal
    (reader,) = layer.consumers
    assert (reader.node.name, reader.start, reader.run) == ("Gemm_y", 0, 9)


@pytest.mark.parametrize(
    ("assignment", "kind", "name", "reason"),
    [
        ("first", "basic", "Conv_c_stem", "stays high: it reads the graph input."),
        ("first", "basic", "Conv_c_b", "stays high: Add 'Add_sum' reads it, which is no layer that can pay for it."),
        ("last", "basic", "Conv_c_a", "stays high: it is the first layer of a residual branch."),
        ("last", "basic", "Conv_c_b", "gets no coefficient: Add 'Add_sum' reads it"),
        ("first", "bottleneck", "Conv_c_a", "stays high: Conv 'Conv_c_b', which reads it, is low itself."),
        ("last", "bottleneck", "Conv_c_b", "gets no coefficient: Conv 'Conv_c_c', which reads it, is low itself."),
        ("first", "inverted", "Conv_c_deep", "stays high: it is depthwise."),
        ("first", "plain", "Gemm_y", "stays high: its output 'y' leaves the graph."),
    ],
)
def test_reasons(network, assignment, kind, name, reason):
    assert reason in find_layer_pairs(network(kind), assignment).refused[name]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        ("r = Clip (n, zero, six)", "Clip 'Clip_r' is not linear for positive numbers"),
        ("r = HardSwish (n)", "HardSwish 'HardSwish_r' is not linear for positive numbers"),
        ("r = BatchNormalization (n, s, s, s, s)", "BatchNormalization 'BatchNormalization_r' normalizes it a second"),
    ],
)
def test_what_no_coefficient_passes_does_not_end_the_chain(build, between, reason):
    model = build(
        f"""(float[N,2,5,5] x) => (float[N,3,5,5] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        c = Conv <pads = [1, 1, 1, 1]> (a, w)
        n = BatchNormalization (c, s, s, s, s)
        {between}
        y = Conv (r, v)
    }}""",
        u=np.ones((2, 2, 3, 3), np.float32),
        w=np.ones((4, 2, 3, 3), np.float32),
        v=np.ones((3, 4, 1, 1), np.float32),
        s=np.ones(4, np.float32),
        zero=np.zeros((), np.float32),
        six=np.full((), 6, np.float32),
    )
    pairs = find_layer_pairs(model, "first")
    assert low(pairs) == ["Conv_c"]
    assert not pairs.legal
    assert reason in pairs.refused["Conv_c"]


def test_what_is_read_before_its_normalization_stays_high(build):
    model = build(
        """(float[N,2,5,5] x) => (float[N,4,5,5] y, float[N,4,5,5] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, u)
        c = Conv <pads = [1, 1, 1, 1]> (a, w)
        n = BatchNormalization (c, s, s, s, s)
        z = Sigmoid (c)
        y = Conv (n, v)
    }""",
        u=np.ones((2, 2, 3, 3), np.float32),
        w=np.ones((4, 2, 3, 3), np.float32),
        v=np.ones((4, 4, 1, 1), np.float32),
        s=np.ones(4, np.float32),
    )
    pairs = find_layer_pairs(model, "first")
    assert not pairs.low
    assert "Conv 'Conv_c' stays high: " in pairs.refused["Conv_c"]


def test_a_model_whose_normalizations_are_folded_still_has_pairs(network):
    model = network("basic")
    FoldBatchNorm()(model)
    assert low(find_layer_pairs(model, "first")) == ["Conv_c_a"]
    assert low(find_layer_pairs(model, "last")) == ["Conv_c_b"]


def test_an_unknown_assignment(network):
    with pytest.raises(ValueError, match="assignment is 'middle'; it must be one of first, last"):
        find_layer_pairs(network("plain"), "middle")


@pytest.mark.slow
def test_real_networks(shared_data):
    from onnxdfq.model_file import load_model
    from passes.canonical.canonicalize import Canonicalize

    model = load_model(shared_data / "models" / "resnet20_cifar10.onnx")
    Canonicalize()(model)
    first, last = (find_layer_pairs(model, which) for which in ("first", "last"))
    assert len(first.low) == len(first.legal) == len(last.low) == 9
    assert not {layer.node.name for layer in first.low} & {layer.node.name for layer in last.low}
    assert len(first.high) == 11
