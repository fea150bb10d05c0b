"""Least squares: exact where the rest can say all, better everywhere, and zeros stay."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.pruning.least_squares import fit_layers
from passes.graph.editing import FreshNames, constant_value, set_constant_input
from passes.prune.channels import choose_channels
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
    # channels 4 to 7 are half of 0 to 3: they go, and what stays can say all that they said
    model = network(build, groups=groups, norm=norm)
    node = model.graph.node("Conv_a")
    order = np.arange(8).reshape(groups, 2, -1)  # in each group of the next layer the later ones
    for slot in (1, 2):
        array = constant_value(node.inputs[slot]).copy()
        array[order[:, 1].reshape(-1)] = array[order[:, 0].reshape(-1)] / 2
        set_constant_input(node, slot, array, FreshNames(model.graph), "copied")
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


def test_a_layer_of_one_axis_is_fitted_and_others_are_told(build: Build) -> None:
    model = build(
        """(float[N,3,8] x) => (float[N,2,16] y) {
        a = Conv (x, w) r = Relu (a) b = Conv <pads=[1,1]> (r, u) s = Relu (b) d = ConvTranspose <strides=[2]> (s, t)
        e = Relu (d) y = Conv (e, z) }""",
        w=rand(8, 3, 1), u=rand(8, 8, 3), t=rand(8, 4, 2), z=rand(2, 4, 1),
    )  # fmt: skip
    plan = choose_channels(model, ratio=0.25, multiple=2)
    pruned = model.clone()
    RemoveChannels(plan)(pruned)
    x, other = rand(64, 3, 8), rand(16, 3, 8)
    before = error(pruned, model, other)
    assert fit_layers(pruned, model, plan, x) == ("ConvTranspose_d",)
    assert error(pruned, model, other) < before
