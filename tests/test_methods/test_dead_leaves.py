"""The method dead-leaves: images for any model, in its own units, and better ones than noise."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import DataError, InputError
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import DeadLeaves, Noise
from onnxdfq.synthesis.dead_leaves import dead_leaves
from onnxdfq.synthesis.quality import evaluate_images

STANDARD = Normalization(mean=(0.45,), std=(0.25,))


def test_images_are_leaves_in_the_units_of_the_model(nets: SimpleNamespace) -> None:
    model = nets.plain_network(norm=False)
    normalization = Normalization(mean=(0.5,), std=(0.2,))
    images = DeadLeaves(steps=0).synthesize(model, count=5, seed=3, normalization=normalization)
    np.testing.assert_allclose(images.pixels, (dead_leaves(5, 1, 8, 8, seed=3) - 0.5) / 0.2, atol=1e-5)
    assert (images.method, images.seed) == ("dead-leaves", 3)
    assert images.provenance["input_range"] == "normalization"
    fewer = DeadLeaves(steps=0).synthesize(model, count=2, seed=3, normalization=normalization)
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
    DeadLeaves(steps=3, batch_size=2).synthesize(
        small_model, count=3, seed=0, progress=lambda done, total, _, /: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]
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


def test_the_model_answers_more_strongly_to_images_that_hardly_differ(nets: SimpleNamespace) -> None:
    model = nets.plain_network(norm=False)
    plain, stretched, again = (
        DeadLeaves(steps=steps).synthesize(model, count=40, seed=0, normalization=STANDARD).pixels
        for steps in (0, 10, 10)
    )
    assert stretched.tobytes() == again.tobytes()
    assert 0.05 < np.abs(stretched - plain).max() < 0.35
    assert stretched.min() >= -0.45 / 0.25 - 1e-5 and stretched.max() <= 0.55 / 0.25 + 1e-5
    before, after = (np.ptp(TorchGraph(model)(torch.from_numpy(pixels))[0].numpy(), 1) for pixels in (plain, stretched))
    assert after.mean() > 1.2 * before.mean()


def test_a_model_of_one_batch_size_and_one_without_an_output_to_stretch(nets: SimpleNamespace) -> None:
    assert len(DeadLeaves(steps=2).synthesize(nets.plain_network(batch=4), count=6, seed=0)) == 6
    net = nets.Network()
    best = net.node("ArgMax", net.conv("image", 1, 4), axis=1)
    model = net.model({"image": ["batch", 1, 8, 8]}, {best: ["batch", 1, 8, 8]})
    model.graph.outputs[0].dtype = ir.DataType.INT64
    images, plain = (DeadLeaves(steps=steps).synthesize(model, count=3, seed=0) for steps in (10, 0))
    np.testing.assert_array_equal(images.pixels, plain.pixels)


@pytest.mark.parametrize("settings", [{"steps": -1}, {"batch_size": 0}, {"rate": 0.0}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        DeadLeaves(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_real_network_is_calibrated_better_than_by_noise(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "vww_coco256.npz") as data:
        images, labels = data["images"][:128], data["labels"][:128]
    found = [
        onnxdfq.compress(
            shared_data / "models" / "mobilenetv1_vww.onnx",
            method=method,
            images=32,
            normalize="none",
            evaluate=zip(images, labels.tolist(), strict=True),
            output=tmp_path / "q.onnx",
            force=True,
        ).metrics["sqnr_db"]
        for method in (DeadLeaves(), DeadLeaves(steps=0), Noise())
    ]
    print(found)
    assert found[0] > found[2] + 3
