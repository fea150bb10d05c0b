"""Moments of values that are only moved: joined, split, reshaped, padded."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.moments.moments import activation_moments, value_spreads
from passes.moments.moves import spread_of_move
from passes.moments.spread import Spread

from . import normalized
from .normalized import BETA, BN, GAMMA, NORM, moments_of, samples

RNG = normalized.RNG  # what a module holds is drawn from anew in each of its tests
MOVED = {
    "concat": ("y = Concat <axis = 1> (b, b)", "float[N,8,6,6] y", [0, 1, 2, 3, 0, 1, 2, 3]),
    "split": ("z, y = Split <axis = 1> (b, one_three)", "float[N,1,6,6] z, float[N,3,6,6] y", [1, 2, 3]),
    "gather": ("y = Gather <axis = 1> (b, picked)", "float[N,2,6,6] y", [2, 0]),
    "slice": ("y = Slice(b, starts, ends, axes, steps)", "float[N,2,3,6] y", [3, 1]),
    "shuffle": (
        "r = Reshape(b, grouped) p = Transpose <perm = [0, 2, 1, 3, 4]> (r) y = Reshape(p, flat)",
        "float[N,4,6,6] y",
        [0, 2, 1, 3],
    ),
    "shuffle over the batch": (
        "r = Reshape(b, pairs) p = Transpose <perm = [1, 0, 2]> (r) "
        "q = Reshape(p, halves) y = Gather <axis = 0> (q, first)",
        "float[N,2,6,6] y",
        [1, 3],
    ),
    "depth to space": ("y = DepthToSpace <blocksize = 2> (b)", "float[N,1,12,12] y", None),
    "space to depth": ("y = SpaceToDepth <blocksize = 2> (b)", "float[N,16,3,3] y", [0, 1, 2, 3] * 4),
    "tile": ("y = Tile(b, twice)", "float[N,8,6,6] y", [0, 1, 2, 3] * 2),
    "flatten": ("f = Flatten(b) y = Slice(f, tail, end, axes1)", "float[N,40] y", [2] * 4 + [3] * 36),
}


@pytest.mark.parametrize("case", MOVED)
def test_moved_channels(build, case):
    body, outputs, channels = MOVED[case]
    constants = {
        "one_three": [1, 3], "picked": [2, 0], "starts": [3, 0], "ends": [0, 5], "axes": [1, 2], "steps": [-2, 2],
        "grouped": [0, 2, 2, 6, 6], "flat": [0, 4, 6, 6], "pairs": [-1, 2, 36], "halves": [2, -1, 2, 6, 6],
        "twice": [1, 2, 1, 1], "first": 1, "tail": [104], "end": [144], "axes1": [1],
    }  # fmt: skip
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: np.array(value, np.int64) for name, value in constants.items() if name in words}
    found = moments_of(build, body, outputs, **used).get("y")
    if channels is None:  # positions of one channel that were different channels: none is told
        assert found is None
        return
    np.testing.assert_allclose(found.mean, BETA[channels], atol=1e-6)
    np.testing.assert_allclose(found.std, np.abs(GAMMA)[channels], rtol=1e-6)
    assert not found.approximate


def test_a_shape_that_holds_for_one_batch_alone(build):
    model = build(
        f"(float[N,4,6,6] x) => (float[1,2,2,36] y) {{ b = {BN} y = Reshape(b, one) }}",
        **NORM,
        one=np.array([1, 2, 2, 36], np.int64),
    )
    assert "y" not in activation_moments(model)
    model = build(
        f"(float[1,4,6,6] x) => (float[1,2,2,36] y) {{ b = {BN} y = Reshape(b, one) }}",
        **NORM,
        one=np.array([1, 2, 2, 36], np.int64),
    )
    assert dict(value_spreads(model))["y"].labels[0, :, :, 0].tolist() == [[0, 1], [2, 3]]


def test_a_detectors_rows(build):
    """Two maps as rows of boxes, joined, and a gate over all: the channels are where axis 1 does not tell them."""
    model = build(
        f"(float[N,4,6,6] x, float[N,4,3,3] z) => (float[N,90,2] y) {{ b = {BN} "
        "c = BatchNormalization <epsilon = 0.0> (z, s, m, t, v) "
        "p = Transpose <perm = [0, 2, 3, 1]> (b) q = Transpose <perm = [0, 2, 3, 1]> (c) "
        "r = Reshape(p, rows) t1 = Reshape(q, rows) j = Concat <axis = 1> (r, t1) k = Mul(j, two) y = Relu(k) }",
        **NORM,
        rows=np.array([0, -1, 2], np.int64),
        two=np.full(1, 2, np.float32),
    )
    assert "y" not in activation_moments(model)
    found = dict(value_spreads(model))["y"]
    both = np.maximum(2 * np.concatenate([samples(), samples(NORM["m"])]), 0)
    np.testing.assert_allclose(found.spread.mean, both.mean(axis=1), atol=0.03)
    np.testing.assert_allclose(found.spread.std, both.std(axis=1), rtol=0.01, atol=0.01)
    assert [np.bincount(found.labels[0, :, part]).tolist() for part in (0, 1)] == [
        [36, 0, 36, 0, 9, 0, 9],
        [0, 36, 0, 36, 0, 9, 0, 9],
    ]


def test_channels_that_padding_adds_are_constant(build):
    """The shortcut of a ResNet for CIFAR: every other pixel, and zeros for the channels that are new."""
    pads = np.array([0, 2, 0, 0, 0, 1, 0, 0], np.int64)
    found = moments_of(build, "y = Pad(b, pads)", "float[N,7,6,6] y", pads=pads)["y"]
    np.testing.assert_allclose(found.mean, [0, 0, *BETA, 0], atol=1e-6)
    np.testing.assert_allclose(found.std, [0, 0, *np.abs(GAMMA), 0], atol=1e-6)


@pytest.mark.parametrize("sizes", [[0, 1, 1, 1], [2**40, 1, 1, 1], [1, 1, 2**15, 2**15], [1, 1, -1, 1]])
def test_movements_to_nothing_or_to_too_much_tell_no_spread(sizes: list[int]) -> None:
    graph = onnx.parser.parse_graph("g (float[1, 2, 4, 4] x) => (float y) { y = Tile(x, sizes) }")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(sizes), "sizes"))
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]))
    (node,) = model.graph
    source = Spread.normal(np.zeros(2), np.ones(2), origin="x")
    assert spread_of_move(node, source) == (None,)
