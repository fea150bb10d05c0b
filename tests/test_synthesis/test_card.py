"""The card of a set of images, by hand, and through its doors."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import DataError, InputError
from onnxdfq.generators.zoo import zoo_of_one
from onnxdfq.images.images import Images
from onnxdfq.images.normalization import Normalization
from onnxdfq.recipe.zoo import Member
from onnxdfq.synthesis.card import image_card
from onnxdfq.synthesis.diversity import similarity

from ..graphs import DIGITS, Network, natural_images, plain_network

STANDARD = "0.45/0.25"


def two_pixels() -> ir.Model:
    """Scores are the two pixels, as they are."""
    net = Network()
    scores = net.node("MatMul", net.node("Flatten", "image"), net.constant(np.eye(2, dtype=np.float32)))
    return net.model({"image": ["batch", 1, 1, 2]}, {scores: ["batch", 2]})


def test_shares_and_entropy_by_hand() -> None:
    """Softmax is above 0.9 where the pixels differ by more than ln 9 = 2.197."""
    pixels = np.array([[0, 2.3], [3, 0], [1, 1], [0, 2.1]], np.float32).reshape(4, 1, 1, 2)
    zoo = zoo_of_one(two_pixels(), Normalization.parse(STANDARD), name="it", device="cpu", precision="float32")
    (view,) = zoo.views([0])
    card = image_card(pixels, [view, view], batch_size=3)
    (model, again) = card.models
    mean = torch.from_numpy(pixels.reshape(4, 2)).softmax(1).mean(0)
    assert model == again and model.name == "it" and model.confident == 0.5 and model.bn_distance is None
    assert model.entropy == pytest.approx(float(-(mean * mean.log2()).sum()), rel=1e-5)
    assert (card.confident_mean, card.confident_std) == (0.5, 0.0) and card.images == 4
    assert card.diversity == pytest.approx(1 - similarity(pixels))
    assert image_card(pixels[:1], [view]).diversity is None


def test_mean_and_deviation_over_models() -> None:
    nets = [two_pixels(), plain_network()]
    views = [zoo_of_one(net, Normalization.parse(STANDARD), name="it", device="cpu").views([0])[0] for net in nets]
    images = natural_images(40, 1, 8)
    card = image_card(images, views)
    shares = [model.confident for model in card.models]
    assert card.confident_mean == pytest.approx(np.mean(shares)) and card.confident_std == pytest.approx(np.std(shares))
    assert card.models[0].bn_distance is None and (card.models[1].bn_distance or 1) < 0.1


def test_the_similarity_of_many_is_that_of_all_at_once() -> None:
    images = natural_images(150, 1, 8)
    units = images.reshape(150, -1).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    together = units @ units.T
    assert similarity(images) == pytest.approx((together.sum() - 150) / (150 * 149), rel=1e-6)


def test_synthesize_tells_the_card_as_json(tmp_path: Path) -> None:
    output = tmp_path / "images.npz"
    said = CliRunner().invoke(
        main, ["synthesize", str(DIGITS / "digits.onnx"), "-m", "noise", "--images", "8", "--json", "-o", str(output)]
    )
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    (model,) = found["card"]["models"]
    assert model["name"] == "digits.onnx" and model["confident"] == pytest.approx(found["confident"])
    assert model["bn_distance"] == pytest.approx(found["bn_distance"], rel=1e-4)
    assert found["card"]["images"] == 8 and 0.5 < found["card"]["diversity"] < 1.5


def test_the_card_of_pictures_at_hand(tmp_path: Path) -> None:
    data = np.load(DIGITS / "digits_test.npz")["images"][:60]
    pictures = data if data.ndim == 4 else data[..., None]
    zoo = [DIGITS / "digits.onnx"]  # which tells how its inputs were normalised
    card = onnxdfq.image_card(pictures, zoo)
    assert (card.confident_mean or 0) > 0.9 and (card.entropy or 0) > 0.95
    assert (
        onnxdfq.image_card(pictures, [Member(path=zoo[0], normalize="0.9/0.1")]).confident_mean != card.confident_mean
    )
    np.savez(tmp_path / "pictures.npz", images=pictures)
    assert onnxdfq.image_card(tmp_path / "pictures.npz", zoo) == card
    images = Images(pixels=pictures.astype(np.float32), pictures=pictures, method="file", seed=0)
    assert onnxdfq.image_card(images, zoo) == card
    larger = pictures.repeat(2, 1).repeat(2, 2)  # another size
    assert onnxdfq.image_card(larger, zoo).entropy == pytest.approx(card.entropy, abs=0.05)
    with pytest.raises(DataError, match="uint8"):
        onnxdfq.image_card(pictures.astype(np.float32), zoo)
    with pytest.raises(DataError, match="made for one model"):
        onnxdfq.image_card(Images(pixels=pictures.astype(np.float32), method="dgh", seed=0), zoo)
    with pytest.raises(InputError, match="3 channels"):
        onnxdfq.image_card(pictures.repeat(3, 3), zoo)
    with pytest.raises(InputError, match="give one at least"):
        onnxdfq.image_card(pictures, [])


def test_pictures_and_labels_are_kept_in_the_file(tmp_path: Path) -> None:
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    images = Images(
        pixels=pictures.transpose(0, 3, 1, 2).astype(np.float32),
        pictures=pictures,
        labels=np.array([4, 1]),
        method="mixmix",
        seed=0,
    )
    images.save(tmp_path / "images.npz")
    back = Images.load(tmp_path / "images.npz")
    assert np.array_equal(back.pixels, pictures) and back.labels is not None and back.labels.tolist() == [4, 1]
    first = images.first(1)
    assert first.labels is not None and first.pictures is not None
    assert len(first.labels) == len(first.pictures) == len(first) == 1
