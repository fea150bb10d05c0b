"""RemoveChannels and the plan of `choose_channels`, by operator: who goes with whom, and outputs to the last bit."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes.moments.moments import activation_moments
from passes.prune.channels import choose_channels
from passes.prune.plan import CannotPrune, ChannelPlan
from passes.prune.remove_channels import RemoveChannels

Build = Callable[..., ir.Model]
Whole = Callable[..., NDArray[np.float32]]
Pruned = Callable[..., tuple[ir.Model, ChannelPlan]]


def norm(channels: int) -> NDArray[np.float32]:
    return np.ones(channels, np.float32)


def shapes(model: ir.Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.const_value.numpy().shape) for name, value in model.graph.initializers.items()}


def widths(model: ir.Model) -> dict[str, Any]:
    """Axis 1 of each value, where it is known."""
    return {value.name: value.shape[1] for node in model.graph for value in node.outputs if value.shape is not None}


def check(model: ir.Model, wanted: Mapping[str, tuple[int, ...]]) -> None:
    found = shapes(model)
    assert {name: found[name] for name in wanted} == wanted


def test_conv_norm_relu(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,5,4,4] y) {
        a = Conv <pads=[1,1,1,1]> (x, w, b)
        n = BatchNormalization <epsilon=0.0> (a, s, t, m, v)
        r = Relu (n)
        y = Conv (r, u, c) }""",
        w=whole(8, 3, 3, 3), b=whole(8), s=whole(8), t=whole(8), m=whole(8), v=norm(8), u=whole(5, 8, 1, 1), c=whole(5),
    )  # fmt: skip
    reads = np.square(model.graph.initializers["u"].const_value.numpy()).sum(axis=(0, 2, 3))
    worth = reads * np.square(activation_moments(model)["r"].std)
    narrow, plan = pruned(model)
    check(narrow, dict.fromkeys("bstmv", (4,)) | {"w": (4, 3, 3, 3), "u": (5, 4, 1, 1), "c": (5,)})
    assert plan.values["a"].channels.tolist() == sorted(np.argsort(worth, kind="stable")[4:].tolist())
    assert plan.removed == 4 and widths(narrow) == {"a": 4, "n": 4, "r": 4, "y": 5}
    hidden, last = plan.groups
    assert (hidden.channels, hidden.kept, hidden.why) == (8, 4, None)
    assert last.kept == 5 and last.why == "its channels are those of the output 'y'"


def test_residual_branches_go_together(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) b = Relu (a) c = Conv (b, u) d = Relu (c) e = Conv (d, v) f = Add (e, b) g = Relu (f)
        y = Conv (g, z) }""",
        w=whole(8, 3, 1, 1), u=whole(6, 8, 1, 1), v=whole(8, 6, 1, 1), z=whole(2, 8, 1, 1),
    )  # fmt: skip
    readers = [model.graph.initializers[name].const_value.numpy().astype(float) for name in ("u", "z")]
    worth = sum(np.sqrt(np.square(weight).sum(axis=(0, 2, 3))) for weight in readers)  # no one tells the variances
    narrow, plan = pruned(model)
    check(narrow, {"w": (4, 3, 1, 1), "u": (4, 4, 1, 1), "v": (4, 4, 1, 1), "z": (2, 4, 1, 1)})
    assert plan.groups[0].layers == ("Conv_a", "Conv_e")
    kept = sorted(np.argsort(worth, kind="stable")[4:].tolist())
    assert plan.values["a"].channels.tolist() == plan.values["f"].channels.tolist() == kept


@pytest.mark.parametrize("times", [1, 2])
def test_depthwise_goes_with_what_it_reads(build: Build, whole: Whole, pruned: Pruned, times: int) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) r = Clip (a, low, high) d = Conv <group=8, pads=[1,1,1,1]> (r, k, b) y = Conv (d, u) }""",
        w=whole(8, 3, 1, 1), k=whole(8 * times, 1, 3, 3), b=whole(8 * times), u=whole(2, 8 * times, 1, 1),
        low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    narrow, plan = pruned(model)
    check(narrow, {"w": (4, 3, 1, 1), "k": (4 * times, 1, 3, 3), "b": (4 * times,), "u": (2, 4 * times, 1, 1)})
    assert narrow.graph.node("Conv_d").attributes["group"].as_int() == 4
    assert plan.groups[0].layers == ("Conv_a", "Conv_d")


def test_grouped_keeps_equal_groups(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) r = Relu (a) d = Conv <group=2> (r, k) y = Conv (d, u) }""",
        w=whole(8, 3, 1, 1), k=whole(12, 4, 1, 1), u=whole(2, 12, 1, 1),
    )  # fmt: skip
    narrow, plan = pruned(model)
    check(narrow, {"w": (4, 3, 1, 1), "k": (6, 2, 1, 1), "u": (2, 6, 1, 1)})
    first, second = plan.values["a"].channels.reshape(2, -1)
    assert (second - first == 4).all()
    assert narrow.graph.node("Conv_d").attributes["group"].as_int() == 2


def test_chained_concats(build: Build, whole: Whole, pruned: Pruned) -> None:
    # as in DenseNet: each layer reads all that came before, through a normalization of its own
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) p = BatchNormalization <epsilon=0.0> (a, ps, pt, pm, pv) pr = Relu (p) b = Conv (pr, u)
        c = Concat <axis=1> (a, b) q = BatchNormalization <epsilon=0.0> (c, qs, qt, qm, qv) qr = Relu (q)
        d = Conv (qr, v) e = Concat <axis=1> (c, d) f = Relu (e) y = Conv (f, z) }""",
        w=whole(8, 3, 1, 1), u=whole(4, 8, 1, 1), v=whole(6, 12, 1, 1), z=whole(2, 18, 1, 1),
        ps=whole(8), pt=whole(8), pm=whole(8), pv=norm(8), qs=whole(12), qt=whole(12), qm=whole(12), qv=norm(12),
    )  # fmt: skip
    narrow, plan = pruned(model)
    assert len(plan.groups) == 4
    check(narrow, {"w": (4, 3, 1, 1), "u": (2, 4, 1, 1), "v": (4, 6, 1, 1), "z": (2, 10, 1, 1), "ps": (4,), "qs": (6,)})


@pytest.mark.parametrize(("groups", "weight"), [(1, (8, 6)), (2, (8, 3)), (8, (8, 1))])
def test_conv_transpose(build: Build, whole: Whole, pruned: Pruned, groups: int, weight: tuple[int, int]) -> None:
    made = weight[1] * groups
    model = build(
        f"""(float[N,3,4,4] x) => (float[N,2,8,8] y) {{
        a = Conv (x, w) r = Relu (a) d = ConvTranspose <group={groups}, strides=[2,2]> (r, k, b) s = Relu (d)
        y = Conv (s, u) }}""",
        w=whole(8, 3, 1, 1), k=whole(*weight, 2, 2), b=whole(made), u=whole(2, made, 1, 1),
    )  # fmt: skip
    narrow, _ = pruned(model)
    part = {1: 4, 2: 2, 8: 1}[groups]  # of 6 the nearest multiple of 2 to a half is 4, of two groups 2 each
    left = {1: 4, 2: 4, 8: 4}[groups]
    check(narrow, {"w": (4, 3, 1, 1), "k": (4, part, 2, 2), "b": (left,), "u": (2, left, 1, 1)})


@pytest.mark.parametrize(
    "way", ["f = Flatten (r)", "f = Reshape (r, shape)", "t = Transpose <perm=[0,2,3,1]> (r) f = Flatten (t)"]
)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_behind_flatten(build: Build, whole: Whole, pruned: Pruned, way: str, transposed: int) -> None:
    weight = whole(32, 6)
    model = build(
        f"""(float[N,3,2,2] x) => (float[N,5] y) {{
        a = Conv (x, w) r = Relu (a) {way} g = Gemm <transB={transposed}> (f, k, b) s = Relu (g)
        y = Gemm (s, u, c) }}""",
        w=whole(8, 3, 1, 1), k=weight.T.copy() if transposed else weight, b=whole(6), u=whole(6, 5), c=whole(5),
        **({"shape": np.array([-1, 32])} if "shape" in way else {}),
    )  # fmt: skip
    narrow, plan = pruned(model)
    check(narrow, {"w": (4, 3, 1, 1), "k": (4, 16) if transposed else (16, 4), "b": (4,), "u": (4, 5)})
    assert len(plan.values["f"].channels) == 16


def test_matmul_of_tokens(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4] x) => (float[N,3,4] y) { h = MatMul (x, w) b = Add (h, c) r = Relu (b) y = MatMul (r, v) }""",
        w=whole(4, 8), c=whole(8), v=whole(8, 4),
    )  # fmt: skip
    plan = choose_channels(model, ratio=0.5, multiple=2)
    RemoveChannels(plan)(model)
    check(model, {"w": (4, 4), "c": (4,), "v": (4, 4)})
    assert plan.values["r"].axis == 2


def test_gate(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) r = Relu (a)
        p = GlobalAveragePool (r) s = Conv (p, u) t = Relu (s) e = Conv (t, v)
        h = HardSigmoid <alpha=0.25, beta=0.5> (e) m = Mul (r, h) y = Conv (m, z) }""",
        w=whole(8, 3, 1, 1), u=whole(4, 8, 1, 1), v=whole(8, 4, 1, 1), z=whole(2, 8, 1, 1),
    )  # fmt: skip
    narrow, plan = pruned(model)
    check(narrow, {"w": (4, 3, 1, 1), "u": (2, 4, 1, 1), "v": (4, 2, 1, 1), "z": (2, 4, 1, 1)})
    assert plan.groups[0].layers == ("Conv_a", "Conv_e")


def test_shortcut_that_pads_channels(build: Build, whole: Whole, pruned: Pruned) -> None:
    # ResNets of CIFAR size: a wider block reads the narrower one with channels of zeros around it
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,2,2] y) {
        a = Conv (x, w) r = Relu (a) s = Slice (r, zero, far, axes, two) p = Pad (s, amounts)
        b = Conv <strides=[2,2]> (r, u) c = Add (b, p) d = Relu (c) y = Conv (d, v) }""",
        w=whole(4, 3, 1, 1), u=whole(8, 4, 1, 1), v=whole(2, 8, 1, 1), zero=np.array([0, 0]), far=np.array([9, 9]),
        axes=np.array([2, 3]), two=np.array([2, 2]), amounts=np.array([0, 2, 0, 0, 0, 2, 0, 0]),
    )  # fmt: skip
    narrow, plan = pruned(model)
    check(narrow, {"w": (2, 3, 1, 1), "u": (4, 2, 1, 1), "v": (2, 4, 1, 1)})
    amounts = narrow.graph.node("Pad_p").inputs[1].const_value.numpy()
    assert amounts[1] + amounts[5] == 2
    assert len(plan.groups[0].layers) == 2


def test_ranges_and_sizes_follow(build: Build, whole: Whole, pruned: Pruned) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,8,8] y) {
        a = Conv (x, w) i, j = Split <axis=1> (a, parts) k = Slice (a, start, end, one)
        l = Concat <axis=1> (j, i) m = Mul (l, slope) o = PRelu (m, slopes) q = Concat <axis=1> (o, k)
        z = Resize <mode="nearest", coordinate_transformation_mode="asymmetric"> (q, , , sizes) y = Conv (z, u) }""",
        w=whole(8, 3, 1, 1), parts=np.array([3, 5]), start=np.array([-4]), end=np.array([-1]), one=np.array([1]),
        slope=whole(8, 1, 1), slopes=whole(8, 1, 1), u=whole(2, 11, 1, 1),
        sizes=np.array([2, 11, 8, 8]),
    )  # fmt: skip
    narrow, plan = pruned(model)
    kept = plan.values["a"].channels
    assert len(kept) == 5  # four, and one of a part of which all would go
    parts = narrow.graph.node("Split_i").inputs[1].const_value.numpy().tolist()
    assert parts == [int((kept < 3).sum()), int((kept >= 3).sum())]
    left = int(((kept >= 4) & (kept < 7)).sum())
    assert widths(narrow)["k"] == left and shapes(narrow)["u"] == (2, 5 + left, 1, 1)
    check(narrow, {"slope": (5, 1, 1), "slopes": (5, 1, 1)})


def test_a_range_that_counts_from_the_end(build: Build, whole: Whole, pruned: Pruned) -> None:
    reads = np.array([4, 9, 9], np.float32)[None, :, None, None] * [[[[1]]], [[[2]]]]
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) k = Slice (a, start, end, one) r = Relu (k) y = Conv (r, u) }""",
        w=whole(8, 3, 1, 1), start=np.array([-4]), end=np.array([-1]), one=np.array([1]), u=reads.astype(np.float32),
    )  # fmt: skip
    narrow, plan = pruned(model, ratio=0.75)  # what is not sliced goes first, the last among it
    assert plan.values["a"].channels.tolist() == [5, 6] and widths(narrow)["k"] == 2
    check(narrow, {"w": (2, 3, 1, 1), "u": (2, 2, 1, 1)})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("s = Reshape (r, two) t = Transpose <perm=[0,2,1,3,4]> (s) u = Reshape (t, four)", "mixes channels"),
        ("u = LRN <size=3> (r)", "does not know what it does"),
        ("m = ReduceMean <keepdims=1> (r, one) u = Mul (r, m)", "reduces over the channels"),
        ("u = Softmax <axis=1> (r)", "normalizes over the channels"),
        ("u = Add (r, e)", "whose channels are not a layer's"),
    ],
)  # fmt: skip
def test_what_is_not_understood_keeps_its_channels(
    build: Build, whole: Whole, pruned: Pruned, body: str, why: str
) -> None:
    model = build(
        f"""(float[N,3,2,2] x, float[N,8,2,2] e) => (float[N,2,2,2] y) {{
        a = Conv (x, w) r = Relu (a) {body} b = Conv (u, v) c = Relu (b) y = Conv (c, z) }}""",
        w=whole(8, 3, 1, 1), v=whole(8, 8, 1, 1), z=whole(2, 8, 1, 1), two=np.array([0, 2, 4, 2, 2]),
        four=np.array([0, 8, 2, 2]), one=np.array([1]),
    )  # fmt: skip
    plan = choose_channels(model, ratio=0.5, multiple=2)
    first, second = plan.groups[:2]
    assert first.kept == 8 and why in first.why and first.why.split()[0] in body
    assert second.kept == 4  # the rest is pruned
    RemoveChannels(plan)(model)
    check(model, {"w": (8, 3, 1, 1), "v": (4, 8, 1, 1), "z": (2, 4, 1, 1)})


@pytest.mark.parametrize(
    ("channels", "ratio", "multiple", "left"),
    [
        (16, 0.2, 8, 16),
        (32, 0.2, 8, 24),
        (64, 0.2, 8, 48),
        (64, 0.95, 8, 8),
        (6, 0.5, 8, 6),
        (20, 0.5, 8, 8),
        (9, 0.5, 1, 4),
    ],
)
def test_a_multiple_stays(build: Build, whole: Whole, channels: int, ratio: float, multiple: int, left: int) -> None:
    model = build(
        "(float[N,3,2,2] x) => (float[N,2,2,2] y) { a = Conv (x, w) y = Conv (a, u) }",
        w=whole(channels, 3, 1, 1), u=whole(2, channels, 1, 1),
    )  # fmt: skip
    assert choose_channels(model, ratio=ratio, multiple=multiple).groups[0].kept == left


def test_no_layer_is_left_empty(build: Build, whole: Whole) -> None:
    model = build(
        "(float[N,3,2,2] x) => (float[N,2,2,2] y) { a = Conv (x, w) y = Conv (a, u) }",
        w=whole(16, 3, 1, 1), u=whole(2, 16, 1, 1),
    )  # fmt: skip
    with pytest.raises(CannotPrune, match=r"0.98 leaves no channel of Conv 'Conv_a', which has 16"):
        choose_channels(model, ratio=0.98)


def test_a_plan_for_another_graph_is_refused(build: Build, whole: Whole) -> None:
    text = "(float[N,3,2,2] x) => (float[N,2,2,2] y) {{ {0} = Conv (x, w) y = Conv ({0}, u) }}"
    weights = {"w": whole(16, 3, 1, 1), "u": whole(2, 16, 1, 1)}
    plan = choose_channels(build(text.format("a"), **weights), ratio=0.5)
    with pytest.raises(ir.passes.PreconditionError, match="Conv_a"):
        RemoveChannels(plan)(build(text.format("b"), **weights))
