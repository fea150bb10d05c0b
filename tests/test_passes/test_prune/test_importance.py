"""The worth of channels: what is redundant goes first, and what readers lose for good is what least squares says."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes.graph.editing import is_op
from passes.graph.filters import from_filters, to_filters
from passes.prune.channels import ChannelChoice, choose_channels
from passes.prune.importance import Importance
from passes.prune.tracing import trace

Build = Callable[..., ir.Model]
RANDOM = np.random.default_rng(0)


def rand(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(np.float32)


def chain(build: Build) -> ir.Model:
    return build(
        "(float[N,3,4,4] x) => (float[N,5,4,4] y) { a = Conv (x, w) r = Relu (a) y = Conv (r, u) }",
        w=rand(6, 3, 1, 1), u=rand(5, 6, 1, 1),
    )  # fmt: skip


def lost(rows: NDArray[np.float64], covariance: NDArray[np.float64], gone: list[int]) -> float:
    """The squared error of the best weights without some features."""
    left = [index for index in range(len(covariance)) if index not in gone]
    best = np.linalg.solve(covariance[np.ix_(left, left)], covariance[left] @ rows.T)
    error = rows.T.copy()
    error[left] -= best
    return float(np.trace(error.T @ covariance @ error))


def test_what_a_reader_loses_is_the_error_of_least_squares(build: Build) -> None:
    model = chain(build)
    factor = RANDOM.normal(size=(6, 6))
    covariance = factor @ factor.T + 0.1 * np.eye(6)
    found = trace(model)
    importance = Importance(model, found, {"Conv_y": covariance[None]})
    ridge = covariance + 0.01 * np.trace(covariance) / 6 * np.eye(6)
    rows = model.graph.initializers["u"].const_value.numpy()[:, :, 0, 0].astype(float)
    roots = found.classes.roots(found.layers[0].atoms).tolist()
    losses = importance.losses()
    for channel, root in enumerate(roots):
        assert losses[root] ** 2 == pytest.approx(lost(rows, ridge, [channel]), rel=1e-6)
    first, second = (roots.index(root) for root in importance.order(roots, 2))
    after = importance.without([roots[first]]).losses()
    assert second == min(set(range(6)) - {first}, key=lambda channel: after[roots[channel]])
    both = lost(rows, ridge, [first]) + after[roots[second]] ** 2
    assert both == pytest.approx(lost(rows, ridge, [first, second]), rel=1e-6)


def test_of_two_copies_one_goes(build: Build) -> None:
    model = chain(build)
    values = RANDOM.normal(size=(1000, 6))
    values[:, 4] = values[:, 1] + 1e-3 * values[:, 4]
    covariance = {"Conv_y": np.cov(values, rowvar=False)[None]}
    choice = ChannelChoice(model, multiple=1, covariances=covariance)
    gone = set(range(6)) - set(choice.plan([1 / 6, 0]).values["a"].channels.tolist())
    assert gone in ({1}, {4})
    gone = set(range(6)) - set(choice.plan([2 / 6, 0]).values["a"].channels.tolist())
    assert not gone >= {1, 4}, "the second is no copy any more"


def test_a_normalization_behind_scales_what_is_lost(build: Build) -> None:
    scale, weight = np.array([1, 0, 1], np.float32), np.ones((3, 4, 1, 1), np.float32)
    weight[1, 0], weight[[0, 2], 0] = 100, 0.1  # of an output that is constant
    model = build(
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv (x, w) r = Relu (a) b = Conv (r, u)
        n = BatchNormalization (b, s, t, t, v) y = Conv (n, k) }""",
        w=rand(4, 3, 1, 1), u=weight, s=scale, t=np.zeros(3, np.float32), v=np.ones(3, np.float32), k=rand(2, 3, 1, 1),
    )  # fmt: skip
    assert choose_channels(model, ratio=0.25, multiple=1).values["a"].channels.tolist() == [1, 2, 3]


def test_each_group_has_its_ratio(build: Build) -> None:
    model = build(
        "(float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv (x, w) r = Relu (a) b = Conv (r, u) y = Conv (b, k) }",
        w=rand(8, 3, 1, 1), u=rand(8, 8, 1, 1), k=rand(2, 8, 1, 1),
    )  # fmt: skip
    choice = ChannelChoice(model, multiple=2)
    assert choice.groups == (("Conv_a",), ("Conv_b",), ("Conv_y",))
    assert [group.kept for group in choice.plan([0.5, 0.25, 0]).groups] == [4, 6, 2]


@pytest.mark.parametrize(
    ("text", "shape", "wanted"),
    [
        ("Conv <group=2> (x, w)", (6, 2, 3, 3), (2, 3, 2, 9)),
        ("ConvTranspose <group=2> (x, w)", (4, 3, 3, 3), (2, 3, 2, 9)),
        ("Gemm (x, w)", (4, 6), (1, 6, 4, 1)),
        ("Gemm <transB=1> (x, w)", (6, 4), (1, 6, 4, 1)),
        ("MatMul (x, w)", (4, 4), (1, 4, 4, 1)),
    ],
)
def test_filters_of_all_layers(build: Build, text: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    rank = len(shape)
    sides = "" if rank == 2 else ",5,5"
    out = "" if rank == 2 else ",M,L"
    weight = rand(*shape)
    model = build(f"(float[N,4{sides}] x) => (float[N,O{out}] y) {{ y = {text} }}", w=weight)
    node = next(node for node in model.graph if is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul"))
    filters = to_filters(node, weight)
    assert filters.shape == wanted
    assert np.array_equal(from_filters(node, filters, shape), weight)
