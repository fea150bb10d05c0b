"""Least squares: exact where the rest can say all, better everywhere, and zeros stay."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.pruning.least_squares import fit_layers
from onnxdfq.pruning.moments import give_back, lost_moments
from onnxdfq.pruning.sums import add_batch, constant_weight, empty_sums
from passes.graph.editing import FreshNames, constant_value, set_constant_input
from passes.graph.filters import to_filters
from passes.prune.channels import choose_channels
from passes.prune.plan import ZeroPlan
from passes.prune.remove_channels import RemoveChannels
from passes.prune.zero_weights import ZeroWeights, smallest_weights

Build = Callable[..., ir.Model]
RANDOM = np.random.default_rng(3)


def rand(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(np.float32)


def network(build: Build, *, groups: int = 1, norm: bool = True) -> ir.Model:
    behind = "q = BatchNormalization (b, qs, qt, qm, qv)" if norm else "q = Identity (b)"
    return build(
        f"""(float[N,3,8,8] x) => (float[N,5] y) {{
        a = Conv <pads=[1,0,1,2]> (x, w, wb) r = Relu (a)
        b = Conv <group={groups}, pads=[0,1,2,1], strides=[2,1], dilations=[1,2]> (r, u) {behind}
        z = Relu (q) p = GlobalAveragePool (z) f = Flatten (p) y = Gemm (f, k, c) }}""",
        w=rand(8, 3, 3, 3), wb=rand(8), u=rand(8, 8 // groups, 3, 3), k=rand(8, 5), c=rand(5),
        **({"qs": rand(8), "qt": rand(8), "qm": rand(8), "qv": np.ones(8, np.float32)} if norm else {}),
    )  # fmt: skip


def error(model: ir.Model, original: ir.Model, x: NDArray[np.float32]) -> float:
    with torch.no_grad():
        one, other = (TorchGraph(each)(torch.from_numpy(x))[0] for each in (model, original))
    return float((one - other).square().mean() / other.square().mean())


@pytest.mark.parametrize(("groups", "norm"), [(1, True), (1, False), (2, True)])
def test_copies_of_what_stays_go_without_a_trace(build: Build, groups: int, norm: bool) -> None:
    # channels 4 to 7 are copies of 0 to 3 that hardly anything reads: they go, and what stays can say what they said
    model = network(build, groups=groups, norm=norm)
    node = model.graph.node("Conv_a")
    order = np.arange(8).reshape(groups, 2, -1)  # in each group of the next layer the later ones
    for slot in (1, 2):
        array = constant_value(node.inputs[slot]).copy()
        array[order[:, 1].reshape(-1)] = array[order[:, 0].reshape(-1)] * 500
        set_constant_input(node, slot, array, FreshNames(model.graph), "copied")
    reader = model.graph.node("Conv_b")
    weight = constant_value(reader.inputs[1]).copy()
    weight[:, order.shape[2] :] *= 1e-3
    set_constant_input(reader, 1, weight, FreshNames(model.graph), "read")
    plan = choose_channels(model, ratio=0.5, multiple=1)
    assert plan.values["a"].channels.tolist() == order[:, 0].reshape(-1).tolist()
    only_a = {name: kept for name, kept in plan.values.items() if name in "ar"}
    plan = type(plan)(
        cuts=tuple(cut for cut in plan.cuts if cut.node == "Conv_a" or (cut.node == "Conv_b" and cut.axis == 1)),
        counts=(),
        values=only_a,
        groups=(),
    )
    narrow = model.clone()
    RemoveChannels(plan)(narrow)
    x, other = rand(32, 3, 8, 8), rand(8, 3, 8, 8)
    assert error(narrow, model, other) > 1e-2
    assert fit_layers(narrow, model, plan, x, ridge=1e-9) == ()
    assert error(narrow, model, other) < 1e-6


@pytest.mark.parametrize("kind", ["channels", "weights"])
def test_fitting_helps_on_other_inputs(build: Build, kind: str) -> None:
    model = network(build)
    plan = (
        choose_channels(model, ratio=0.25, multiple=2) if kind == "channels" else smallest_weights(model, sparsity=0.5)
    )
    pruned = model.clone()
    (RemoveChannels(plan) if kind == "channels" else ZeroWeights(plan))(pruned)  # type: ignore[arg-type]
    x, other = rand(64, 3, 8, 8), rand(16, 3, 8, 8)
    before = error(pruned, model, other)
    zeros = [constant_value(node.inputs[1]) == 0 for node in pruned.graph if node.op_type in ("Conv", "Gemm")]
    told: list[str] = []
    assert fit_layers(pruned, model, plan, x, progress=lambda done, total, note: told.append(note)) == ()
    assert error(pruned, model, other) < 0.5 * before
    if kind == "weights":
        after = [constant_value(node.inputs[1]) == 0 for node in pruned.graph if node.op_type in ("Conv", "Gemm")]
        assert all(np.array_equal(one, two) for one, two in zip(zeros, after, strict=True))
        assert told == ["Conv_a", "Conv_b", "Gemm_y"]
    else:
        assert told == ["Conv_b", "Gemm_y"]  # the first reads what it read


@pytest.mark.parametrize("norm", [True, False])
def test_a_layer_makes_up_for_what_the_branch_beside_it_lost(build: Build, norm: bool) -> None:
    # of b next to nothing is left; c reads all that b read, and gives what b gave beside its own
    model = build(
        f"""(float[N,3,4,4] x) => (float[N,2,4,4] y) {{
        b = Conv (x, u) p = Conv (x, e) c = Conv (p, v)
        {"n = BatchNormalization (c, s, t, t, o) d = Add (b, n)" if norm else "d = Add (b, c)"} y = Conv (d, k) }}""",
        u=rand(4, 3, 1, 1), e=rand(6, 3, 1, 1), v=rand(4, 6, 1, 1), k=rand(2, 4, 1, 1),
        **({"s": rand(4) + 3, "t": rand(4), "o": np.ones(4, np.float32)} if norm else {}),
    )  # fmt: skip
    masks = {name: np.ones(shape, bool) for name, shape in (("Conv_b", (4, 3, 1, 1)), ("Conv_c", (4, 6, 1, 1)))}
    masks["Conv_b"][:, 1:] = masks["Conv_c"][:, 0] = False
    plan = ZeroPlan(masks=masks, skipped={})
    pruned = model.clone()
    ZeroWeights(plan)(pruned)
    x, other = rand(64, 3, 4, 4), rand(8, 3, 4, 4)
    assert error(pruned, model, other) > 1e-2
    fit_layers(pruned, model, plan, x, ridge=1e-9)
    assert error(pruned, model, other) < 1e-6


def test_what_moments_repaired_is_not_repaired_again(build: Build) -> None:
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) {
        a = Conv (x, w) n = BatchNormalization (a, s, t, t, o) r = Relu (n) b = Conv (r, u)
        q = BatchNormalization (b, s, t, t, o) z = Relu (q) y = Conv (z, k) }""",
        w=rand(8, 3, 1, 1), u=rand(8, 8, 1, 1), k=rand(2, 8, 1, 1), s=rand(8) + 2, t=rand(8), o=np.ones(8, np.float32),
    )  # fmt: skip
    plan = choose_channels(model, ratio=0.5, multiple=1)
    x, found = rand(32, 3, 4, 4), []
    for repaired in (True, False):
        pruned = model.clone()
        if repaired:
            give_back(pruned, lost_moments(pruned, plan))
        RemoveChannels(plan)(pruned)
        found.append(error(pruned, model, x))
        fit_layers(pruned, model, plan, x)
        found.append(error(pruned, model, x))
    assert found[0] != found[2] and found[1] == pytest.approx(found[3], rel=1e-3)


def test_layers_of_all_kinds_are_fitted(build: Build) -> None:
    model = build(
        """(float[N,3,8] x) => (float[N,7,6] y) {
        a = Conv (x, w) r = Relu (a) b = Conv <pads=[1,1]> (r, u) s = Relu (b)
        d = ConvTranspose <strides=[2], pads=[1,0], dilations=[2], output_padding=[1], group=2> (s, t, tb) e = Relu (d)
        f = Transpose <perm=[0,2,1]> (e) g = MatMul (f, k) h = Add (kb, g) i = Relu (h) j = MatMul (i, l)
        v = Slice (j, start, end, one) y = Identity (v) }""",
        w=rand(8, 3, 1), u=rand(8, 8, 3), t=rand(8, 4, 3), tb=rand(8), k=rand(8, 8), kb=rand(8), l=rand(8, 6),
        start=np.array([0]), end=np.array([7]), one=np.array([1]),
    )  # fmt: skip
    plan = choose_channels(model, ratio=0.25, multiple=2)
    assert {"a", "b", "d", "g"} <= plan.values.keys()
    pruned = model.clone()
    RemoveChannels(plan)(pruned)
    x, other = rand(64, 3, 8), rand(16, 3, 8)
    before = error(pruned, model, other)
    told: list[str] = []
    assert fit_layers(pruned, model, plan, x, progress=lambda done, total, note: told.append(note)) == ()
    assert told == ["Conv_b", "ConvTranspose_d", "MatMul_g", "MatMul_j"]
    assert error(pruned, model, other) < 0.5 * before


@pytest.mark.parametrize(
    ("text", "weight", "sides"),
    [
        ("Conv <group=2, strides=[2,1], pads=[1,0,2,1], dilations=[1,2]> (x, w, b)", (6, 2, 3, 2), (7, 6)),
        ("ConvTranspose <group=2, strides=[2,1], pads=[1,0,2,1], dilations=[1,2]> (x, w, b)", (4, 3, 3, 2), (7, 6)),
        ("ConvTranspose <strides=[3,2], output_padding=[2,1], pads=[2,2,0,1]> (x, w, b)", (4, 6, 2, 2), (4, 5)),
        ("ConvTranspose <strides=[3]> (x, w, b)", (4, 6, 2), (5,)),
        ("MatMul (x, w)", (4, 6), (5,)),
        ("Gemm <alpha=0.5, transB=1> (x, w, b)", (6, 4), ()),
    ],
)
def test_positions_of_each_layer(build: Build, text: str, weight: tuple[int, ...], sides: tuple[int, ...]) -> None:
    # weights and bias of the layer itself are what its own outputs ask for
    channels = "5,4" if text.startswith("MatMul") else ",".join(map(str, (4, *sides)))
    out = ",".join("PQRS"[: len(channels.split(","))])
    w, b = rand(*weight), rand(6)
    model = build(f"(float[N,{channels}] x) => (float[N,{out}] y) {{ y = {text} }}", w=w, b=b)
    node = next(node for node in model.graph if node.op_type in text)
    x = torch.from_numpy(rand(32, *map(int, channels.split(","))))
    with torch.no_grad():
        (y,) = TorchGraph(model)(x)
    array = constant_weight(node)
    sums = empty_sums(node, array, "cpu")
    add_batch(node, x, y, sums)
    found = sums.moments()
    solved = np.linalg.solve(found.xx, found.xy).swapaxes(1, 2)
    filters = to_filters(node, array)
    np.testing.assert_allclose(solved.reshape(filters.shape), filters, atol=1e-3)


def test_each_node_runs_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = " ".join(
        f"c{i} = Conv <pads=[1,1,1,1]> (r{i}, w{i}) q{i} = Relu (c{i}) r{i + 1} = Add (q{i}, r{i})" for i in range(12)
    )
    model = build(
        f"(float[N,8,4,4] x) => (float[N,8,4,4] y) {{ r0 = Relu (x) {layers} y = Identity (r12) }}",
        **{f"w{i}": rand(8, 8, 3, 3) / 9 for i in range(12)},
    )
    plan = smallest_weights(model, sparsity=0.5)
    pruned = model.clone()
    ZeroWeights(plan)(pruned)
    x = rand(40, 8, 4, 4)
    before = error(pruned, model, x)
    computed: list[int] = []
    stream = TorchGraph.stream

    def counted(self: TorchGraph, *inputs: torch.Tensor) -> object:
        computed.append(len(self._operations) * len(inputs[0]))
        return stream(self, *inputs)

    monkeypatch.setattr(TorchGraph, "stream", counted)
    fit_layers(pruned, model, plan, x)
    monkeypatch.undo()
    assert sum(computed) < 4 * len(model.graph) * len(x)  # of 36 nodes, in two networks, each about twice
    assert error(pruned, model, x) < 0.5 * before
