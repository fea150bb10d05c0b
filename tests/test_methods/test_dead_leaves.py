"""The method dead-leaves: images for any model, in its own units, and better ones than noise."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import DeadLeaves, Noise
from onnxdfq.synthesis.dead_leaves import dead_leaves
from onnxdfq.synthesis.quality import evaluate_images


def test_images_are_leaves_in_the_units_of_the_model(nets: SimpleNamespace) -> None:
    model = nets.plain_network(norm=False)
    normalization = Normalization(mean=(0.5,), std=(0.2,))
    images = DeadLeaves().synthesize(model, count=5, seed=3, normalization=normalization)
    np.testing.assert_allclose(images.pixels, (dead_leaves(5, 1, 8, 8, seed=3) - 0.5) / 0.2, atol=1e-5)
    assert (images.method, images.seed) == ("dead-leaves", 3)
    assert images.provenance["input_range"] == "normalization"
    fewer = DeadLeaves().synthesize(model, count=2, seed=3, normalization=normalization)
    assert fewer.pixels.tobytes() == images.pixels[:2].tobytes()


def test_channels_that_come_last(nets: SimpleNamespace) -> None:
    net = nets.Network()
    y = net.node("Relu", net.conv(net.node("Transpose", "image", perm=[0, 3, 1, 2]), 3, 4))
    model = net.model({"image": ["batch", 16, 12, 3]}, {y: ["batch", 4, 16, 12]})
    pixels = DeadLeaves().synthesize(model, count=20, seed=0).pixels
    assert pixels.shape == (20, 16, 12, 3)
    assert np.corrcoef(pixels[..., 0].ravel(), pixels[..., 2].ravel())[0, 1] > 0.8
    assert np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1] > 0.7


def test_progress_and_what_does_not_fit(small_model: ir.Model) -> None:
    seen: list[tuple[int, int]] = []
    DeadLeaves().synthesize(small_model, count=3, seed=0, progress=lambda done, total, _, /: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(DataError, match="3 channels, the model's image input has 1"):
        DeadLeaves().synthesize(
            small_model, count=1, seed=0, normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.2,))
        )


def test_statistics_are_nearer_than_those_of_noise(small_model: ir.Model) -> None:
    distances = [
        evaluate_images(small_model, method.synthesize(small_model, count=64, seed=0)).bn_distance
        for method in (DeadLeaves(), Noise())
    ]
    assert distances[0] < 0.5 * distances[1]
