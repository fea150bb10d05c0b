"""Moments in closed form: exact where what goes is constant, and honest statistics behind."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.pruning.moments import give_back, lost_moments
from passes.graph.editing import constant_value
from passes.prune.plan import ChannelPlan, Cut, Kept, ZeroPlan
from passes.prune.remove_channels import RemoveChannels
from passes.prune.zero_weights import ZeroWeights

Build = Callable[..., ir.Model]
TEXT = """(float[N,2,4,4] x) => (float[N,3,4,4] y) {
    a = Conv (x, w) n = BatchNormalization (a, s, t, m, v) r = Relu (n)
    b = Conv (r, u) q = BatchNormalization (b, qs, qt, qm, qv) z = Relu (q) y = Conv (z, k, c) }"""
KEPT = np.array([0, 2, 3])


def network(build: Build, scale: NDArray[np.float32]) -> ir.Model:
    random = np.random.default_rng(1)

    def rand(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    return build(
        TEXT, w=rand(4, 2, 1, 1), s=scale, t=np.array([0.3, 0.7, -0.1, 0.2], np.float32), m=rand(4),
        v=np.abs(rand(4)) + 0.5, u=rand(5, 4, 1, 1), qs=rand(5), qt=rand(5), qm=rand(5), qv=np.abs(rand(5)) + 0.5,
        k=rand(3, 5, 1, 1), c=rand(3),
    )  # fmt: skip


def without_the_second() -> ChannelPlan:
    cuts = [Cut(node="Conv_a", slot=1, axis=0, kept=KEPT), Cut(node="Conv_b", slot=1, axis=1, kept=KEPT)]
    cuts += [Cut(node="BatchNormalization_n", slot=slot, axis=0, kept=KEPT) for slot in (1, 2, 3, 4)]
    kept = Kept(axis=1, channels=KEPT, before=4)
    return ChannelPlan(cuts=tuple(cuts), counts=(), values=dict.fromkeys("anr", kept), groups=())


def run(model: ir.Model, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return TorchGraph(model)(x)[0].numpy()


def test_a_constant_channel_goes_without_a_trace(build: Build) -> None:
    # its BatchNormalization has scale 0: it is relu(0.7) everywhere
    model = network(build, np.array([1, 0, 2, -1], np.float32))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 2, 4, 4)).astype(np.float32))
    wanted, bare = run(model, x), model.clone()
    plan = without_the_second()
    lost = lost_moments(model, plan)
    weight = constant_value(model.graph.node("Conv_b").inputs[1])
    np.testing.assert_allclose(lost.means["Conv_b"], 0.7 * weight[:, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(lost.shares["Conv_b"], 1)
    give_back(model, lost)
    RemoveChannels(plan)(model)
    RemoveChannels(plan)(bare)
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(run(bare, x) - wanted).max() > 0.1


def test_statistics_are_those_of_what_remains(build: Build) -> None:
    model = network(build, np.array([1, 1, 1, 1], np.float32))
    weight = constant_value(model.graph.node("Conv_b").inputs[1]).astype(float)
    before = [constant_value(model.graph.node("BatchNormalization_q").inputs[slot]) for slot in (3, 4)]
    mask = np.ones(weight.shape, bool)
    mask[:, 1:3] = False
    plan = ZeroPlan(masks={"Conv_b": mask}, skipped={})
    lost = lost_moments(model, plan)
    give_back(model, lost)
    ZeroWeights(plan)(model)
    means, variances = [], []
    for shift in (0.3, 0.7, -0.1, 0.2):  # of relu of a normal variable of deviation 1, by a sample
        sample = np.maximum(np.random.default_rng(2).normal(shift, 1, 400_000), 0)
        means.append(sample.mean())
        variances.append(sample.var())
    rows = weight[:, :, 0, 0]
    mean, var = (constant_value(model.graph.node("BatchNormalization_q").inputs[slot]) for slot in (3, 4))
    np.testing.assert_allclose(mean, before[0] - rows[:, 1:3] @ means[1:3], atol=0.02)
    np.testing.assert_allclose(
        var / before[1], rows[:, [0, 3]] ** 2 @ np.take(variances, [0, 3]) / (rows**2 @ variances), atol=0.02
    )
    assert not lost.unknown


def test_where_nothing_tells_the_mean_it_is_said(build: Build) -> None:
    model = build("(float[N,4,2,2] x) => (float[N,2,2,2] y) { y = Conv (x, w) }", w=np.ones((2, 4, 1, 1), np.float32))
    mask = np.ones((2, 4, 1, 1), bool)
    mask[:, 0] = False
    assert lost_moments(model, ZeroPlan(masks={"Conv_y": mask}, skipped={})).unknown == ("Conv_y",)
