"""The distance of images from what a network remembers, as a whole and layer by layer."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import NoBatchNorm
from onnxdfq.images.images import Images
from onnxdfq.synthesis.quality import distances_by_layer, evaluate_images
from passes.graph.batch_norm import read_batch_norms


def test_the_distance_is_the_mean_of_those_of_the_layers(small_model: ir.Model) -> None:
    pixels = np.random.default_rng(0).normal(1, 2, (8, 1, 8, 8)).astype(np.float32)
    images = Images(pixels=pixels, method="noise", seed=0)
    found = distances_by_layer(small_model, images, batch_size=3)
    assert list(found) == [norm.node for norm in read_batch_norms(small_model)] and len(found) > 1
    assert len(set(found.values())) > 1
    whole = evaluate_images(small_model, images, batch_size=3).bn_distance
    assert np.mean(list(found.values())) == pytest.approx(whole, rel=1e-5)


def test_without_batch_normalization_there_is_none(two_layers: ir.Model) -> None:
    images = Images(pixels=np.zeros((2, 2, 4, 4), np.float32), method="noise", seed=0)
    with pytest.raises(NoBatchNorm):
        distances_by_layer(two_layers, images)
