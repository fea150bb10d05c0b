"""Correlation between positions, against white noise, sampled fields and real convolutions of them."""

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from passes.dfmpc.correlation import (
    COLUMNS,
    RADIUS,
    ROWS,
    SIDE,
    Field,
    correlation_of_function,
    fields,
    natural_image_correlation,
)
from passes.moments.moments import Moments
from passes.moments.spread import ABSCISSAE

IMAGE = {"x": Moments(mean=np.zeros(3), std=np.ones(3))}
CENTRE = SIDE * SIDE // 2


def test_a_natural_image_is_alike_nearby_and_the_same_in_all_directions():
    image = natural_image_correlation().reshape(SIDE, SIDE)
    assert image[RADIUS, RADIUS] == pytest.approx(1.0)
    np.testing.assert_allclose(image, image.T, atol=1e-6)
    np.testing.assert_allclose(image, image[::-1], atol=1e-6)
    along = image[RADIUS, RADIUS:]
    assert (np.diff(along) < 0).all()
    assert 0.7 < along[1] < 0.9


def test_blocks_by_hand():
    correlation = np.tile((1 / (1 + ROWS**2 + 2 * np.abs(COLUMNS))).astype(np.float32), (2, 1))
    field = Field(moments=Moments(mean=np.zeros(2), std=np.array([1.0, 2.0])), correlation=correlation)
    blocks = field.blocks((2, 2), (1, 3))  # taps at (0, 0), (0, 3), (1, 0), (1, 3)
    apart = 1 / 7
    diagonal = [[1, apart, 0.5, 1 / 8], [apart, 1, 1 / 8, 0.5], [0.5, 1 / 8, 1, apart], [1 / 8, 0.5, apart, 1]]
    np.testing.assert_allclose(blocks[0], diagonal, rtol=1e-6)
    np.testing.assert_allclose(blocks[1], 4 * np.array(diagonal), rtol=1e-6)
    assert field.blocks((), ()).shape == (2, 1, 1)


def test_through_relu_against_samples():
    random = np.random.default_rng(0)
    alike = 0.7
    first = random.normal(size=1_000_000)
    second = alike * first + np.sqrt(1 - alike**2) * random.normal(size=first.size)
    shifts = np.array([-1.0, 0.0, 0.5, 3.0])
    points = np.maximum(ABSCISSAE + shifts[:, None], 0)
    found = correlation_of_function(points, np.full((4, 1), alike, np.float32))[:, 0]
    wanted = [np.corrcoef(np.maximum(first + s, 0), np.maximum(second + s, 0))[0, 1] for s in shifts]
    np.testing.assert_allclose(found, wanted, atol=0.01)


def test_through_a_line_and_a_constant_changes_nothing():
    correlation = np.array([[1.0, 0.5, -0.3]], np.float32)
    np.testing.assert_allclose(correlation_of_function(3 * ABSCISSAE[None] + 1, correlation), correlation, atol=1e-6)
    np.testing.assert_array_equal(correlation_of_function(np.ones((1, len(ABSCISSAE))), correlation), correlation)


def sampled(model: ir.Model, value: str, images: np.ndarray) -> np.ndarray:
    """(C, SIDE * SIDE) correlation of a value over positions far from the border."""
    copy = model.clone()
    wanted = next(v for node in copy.graph for v in node.outputs if v.name == value)
    copy.graph.outputs.clear()
    copy.graph.outputs.append(wanted)
    (maps,) = onnx.reference.ReferenceEvaluator(ir.to_proto(copy)).run(None, {"x": images})
    edge = RADIUS + 3
    maps = maps - maps[:, :, edge:-edge, edge:-edge].mean(axis=(0, 2, 3), keepdims=True)
    inner = maps[:, :, edge:-edge, edge:-edge]
    height, width = inner.shape[2:]
    result = []
    for row, column in zip(ROWS, COLUMNS, strict=True):
        moved = maps[:, :, edge + row : edge + row + height, edge + column : edge + column + width]
        result.append((inner * moved).mean(axis=(0, 2, 3)))
    covariance = np.stack(result, axis=1)
    return covariance / covariance[:, CENTRE, None]


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("group", [1, 3])
def test_of_a_convolution_against_white_noise_through_it(build, strides, group):
    random = np.random.default_rng(group)
    model = build(
        f"""(float[N,3,48,48] x) => (float[N,6,M,M] y) {{
        e = Conv <pads = [1, 1, 1, 1]> (x, i)
        h = BatchNormalization (e, s, o, o, s)
        y = Conv <pads = [1, 1, 1, 1], strides = [{strides}, {strides}], group = {group}> (h, w)
    }}""",
        i=(np.eye(3)[:, :, None, None] * np.ones((1, 1, 3, 3))).astype(np.float32),  # a box: neighbours are alike
        s=np.ones(3, np.float32),
        o=np.zeros(3, np.float32),
        w=random.normal(size=(6, 3 // group, 3, 3)).astype(np.float32),
    )
    images = random.normal(size=(60, 3, 48, 48)).astype(np.float32)
    found = dict(fields(model, {"h": Moments(mean=np.zeros(3), std=np.ones(3))}))
    # the input is taken as a natural image; with the correlation it really has, the layer's rule must be exact
    from passes.dfmpc.correlation import layer_correlation

    box = np.maximum(3 - np.abs(ROWS), 0) * np.maximum(3 - np.abs(COLUMNS), 0) / 9
    layer = next(node for node in model.graph if node.outputs[0].name == "y")
    real = Field(moments=found["h"].moments, correlation=np.tile(box.astype(np.float32), (3, 1)))
    wanted = sampled(model, "y", images)
    near = np.maximum(np.abs(ROWS), np.abs(COLUMNS)) * strides <= 2  # farther out, offsets leave the window
    np.testing.assert_allclose(layer_correlation(layer, real)[:, near], wanted[:, near], atol=0.06)


def test_through_the_operators_between_layers(network):
    for kind in ("plain", "basic", "bottleneck", "dense", "inverted"):
        model = network(kind)
        found = dict(fields(model, IMAGE))
        for node in model.graph:
            for value in node.outputs:
                field = found[value.name]
                assert len(field.correlation) == len(field.moments.mean) == value.shape[1], (kind, value.name)
                np.testing.assert_allclose(field.correlation[:, CENTRE], 1.0, atol=1e-4)
                assert (np.abs(field.correlation) <= 1 + 1e-4).all()
                np.testing.assert_allclose(field.correlation, field.correlation[:, ::-1], atol=1e-4)


def test_a_sum_is_in_parts_by_variance_and_a_concat_one_after_the_other(network):
    found = dict(fields(network("basic"), IMAGE))
    branch, skip = found["n_b"], found["stem"]
    shares = np.square(np.stack([branch.moments.std, skip.moments.std]))
    shares /= shares.sum(axis=0)
    wanted = shares[0][:, None] * branch.correlation + shares[1][:, None] * skip.correlation
    np.testing.assert_allclose(found["sum"].correlation, wanted, atol=0.02)
    found = dict(fields(network("dense"), IMAGE))
    whole = np.concatenate([found["stem"].correlation, found["c_new1"].correlation])
    np.testing.assert_allclose(found["all1"].correlation, whole, atol=1e-4)


def test_subsampling_brings_far_positions_near(build):
    model = build(
        """(float[N,2,16,16] x) => (float[N,2,8,8] y, float[N,2,8,8] z) {
        n = BatchNormalization (x, s, o, o, s)
        y = Slice (n, starts, ends, axes, steps)
        z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (n)
    }""",
        s=np.ones(2, np.float32),
        o=np.zeros(2, np.float32),
        starts=np.array([0, 0]),
        ends=np.array([16, 16]),
        axes=np.array([2, 3]),
        steps=np.array([2, 2]),
    )
    found = dict(fields(model, {"x": Moments(mean=np.zeros(2), std=np.ones(2))}))
    before = found["n"].correlation[0].reshape(SIDE, SIDE)
    for name in "yz":
        after = found[name].correlation[0].reshape(SIDE, SIDE)
        assert after[RADIUS, RADIUS + 1] == pytest.approx(before[RADIUS, RADIUS + 2], abs=1e-5)
        assert after[RADIUS - 2, RADIUS + 1] == pytest.approx(before[RADIUS - 4, RADIUS + 2], abs=1e-5)
