"""MixMix and DeepInversion on small models: what they make, what they say, and what they refuse."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError, ModelFileError, NoBatchNorm
from onnxdfq.generators.zoo import Zoo
from onnxdfq.images.images import Images
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import DeepInversion, Mixmix, Noise
from onnxdfq.methods.method import FloatModel, Making
from onnxdfq.recipe import Recipe
from onnxdfq.synthesis.quality import evaluate_images
from passes.write.provenance import read_provenance

from ...graphs import DIGITS, Network, natural_images
from .conftest import BYTES, STANDARD, by_colour, classifier, view_of

Saved = Callable[..., Path]
SHORT = Mixmix(steps=3, batch_size=4)
NORMAL = Normalization.parse(STANDARD)


def answers(path: Path, images: Images) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = TorchGraph(onnxdfq.load(path))(torch.from_numpy(images.pixels))[0]
    return found


def test_deepinversion_gives_images_their_labels_and_the_statistics(small_model: ir.Model) -> None:
    model, method = by_colour(), DeepInversion(steps=60, batch_size=12, statistics=1.0)
    images = method.synthesize(model, count=12, seed=0, normalization=NORMAL)
    assert images.labels is not None and sorted(images.labels) == sorted(4 * [0, 1, 2])
    with torch.no_grad():
        scores = TorchGraph(model)(torch.from_numpy(images.pixels))[0]
    assert scores.argmax(1).tolist() == images.labels.tolist()
    images, noise = (made.synthesize(small_model, count=20, seed=0, normalization=NORMAL) for made in (method, Noise()))
    assert evaluate_images(small_model, images).bn_distance < 0.2 * evaluate_images(small_model, noise).bn_distance


def test_pixels_are_the_pictures_as_the_model_takes_them(small_model: ir.Model) -> None:
    images = DeepInversion(steps=2, batch_size=4).synthesize(small_model, count=6, seed=0, normalization=NORMAL)
    assert images.pictures is not None and images.pictures.shape == (6, 8, 8, 1) and len(images) == 6
    assert np.allclose(images.pixels, NORMAL(images.pictures), atol=1e-5)
    assert images.method == "deepinversion"


@pytest.mark.parametrize("form", ["relative", "norm", "kl"])
def test_more_steps_come_nearer_in_every_form(small_model: ir.Model, form: str) -> None:
    def distance(steps: int) -> float:
        method = DeepInversion(steps=steps, batch_size=16, form=form, label=0.0)  # type: ignore[arg-type]
        images = method.synthesize(small_model, count=16, seed=0, normalization=NORMAL)
        return evaluate_images(small_model, images).bn_distance

    assert distance(60) < 0.5 * distance(1)


def test_a_zoo_makes_images_that_all_its_models_know(saved: Saved, tmp_path: Path) -> None:
    """Two sizes, two units; images in the target's own, as pixels and as bytes that each normalises itself."""
    zoo = [saved("a"), saved("b", side=12, scale=63.75, shift=114.75, norm=BYTES)]  # type: ignore[arg-type]
    target, output = saved("target", classes=3), tmp_path / "images.npz"
    result = onnxdfq.synthesize(
        target, method=Mixmix(steps=60, batch_size=20, models=2), zoo=zoo, images=20, output=output, effort="paper"
    )
    images = result.images
    assert images is not None and images.labels is not None and images.pixels.shape == (20, 1, 8, 8)
    card = result.metrics["card"]
    assert [model["name"] for model in card["models"]] == ["a.onnx", "b.onnx"]
    assert all(model["bn_distance"] < 0.3 and model["entropy"] > 0.8 for model in card["models"])
    assert 0.5 < card["diversity"] < 1.2 and card["images"] == 20
    assert onnxdfq.evaluate(zoo[0], output).top1 == pytest.approx(
        float((answers(zoo[0], images).argmax(1).numpy() == images.labels).mean())
    )
    members = json.loads(images.provenance["zoo"])
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in zoo]
    assert [member["name"] for member in members] == ["a.onnx", "b.onnx"]
    assert [member["digest"] for member in members] == digests and members[1]["input_mean"] == "114.75"
    assert onnxdfq.compress(target, calibration=output, output=tmp_path / "t.onnx").metrics["images"] == 20


@pytest.mark.slow
def test_same_seed_same_bytes_and_another_seed_others() -> None:
    """Also which model makes which batch."""
    models = [classifier(), classifier(side=6)]

    def made(seed: int) -> Images:
        zoo = Zoo([partial(view_of, model) for model in models], 1)
        return SHORT._search(models[0], zoo, Making(count=10, seed=seed, normalization=NORMAL))

    first, again, other = made(1), made(1), made(2)
    assert first.pixels.tobytes() == again.pixels.tobytes() and first.provenance == again.provenance
    assert not np.allclose(first.pixels, other.pixels)


def test_a_permuted_label_is_the_same_label(saved: Saved, tmp_path: Path) -> None:
    """A zoo of one whose classes are in another order: images of the zoo's class k are the model's order[k]."""
    path = saved("a", model=by_colour())
    (tmp_path / "order.toml").write_text("order = [2, 0, 1]\n")
    (tmp_path / "zoo.toml").write_text('[[model]]\npath = "a.onnx"\nlabels = "order.toml"\n')
    method = DeepInversion(steps=60, batch_size=12, statistics=1.0)
    images = onnxdfq.synthesize(path, method=method, zoo=[tmp_path / "zoo.toml"], images=12, effort="paper").images
    assert images is not None and images.labels is not None
    assert answers(path, images).argmax(1).tolist() == np.array([2, 0, 1])[images.labels].tolist()


def test_a_folded_member_takes_part_by_its_answers(saved: Saved) -> None:
    result = onnxdfq.synthesize(saved("a"), method=SHORT, zoo=[saved("a"), saved("b", fold=True)], images=4)
    (note,) = [note for note in result.notes if "BatchNormalization" in note]
    assert note == "b.onnx carries no BatchNormalization: it takes part by its answers alone."
    assert [model["bn_distance"] is None for model in result.metrics["card"]["models"]] == [False, True]
    alone = saved("c", fold=True)
    assert "c.onnx carries no" in " ".join(onnxdfq.synthesize(alone, method=SHORT, images=4).notes)
    with pytest.raises(NoBatchNorm, match="deepinversion reads the running statistics"):
        onnxdfq.synthesize(alone, method=DeepInversion(steps=3), images=4)


def test_a_zoo_of_one_is_used_and_told(saved: Saved) -> None:
    result = onnxdfq.synthesize(saved("a"), method=SHORT, zoo=[saved("b", norm=None)], images=4)
    assert "The zoo has 1 model, which makes each batch, and not 3." in result.notes
    assert not any("Nothing tells" in note for note in result.notes) or "b.onnx" in " ".join(result.notes)


def test_what_no_zoo_can_hold_is_refused_in_one_sentence(saved: Saved, tmp_path: Path) -> None:
    path, text = saved("a"), tmp_path / "text.onnx"
    text.write_text("no model")
    net = Network()
    mapped = net.conv("image", 1, 2)
    ir.save(net.model({"image": ["batch", 1, 8, 8]}, {mapped: ["batch", 2, 8, 8]}), tmp_path / "map.onnx")
    for zoo, kind, message in (
        ([text], ModelFileError, "text.onnx"),
        ([tmp_path / "missing.onnx"], ModelFileError, "there is no such file"),
        ([path, tmp_path / "map.onnx"], InputError, r"map\.onnx scores no classes, as \(N, K\)"),
    ):
        with pytest.raises(kind, match=message):
            onnxdfq.synthesize(path, method=SHORT, zoo=zoo, images=4)
    with pytest.raises(InputError, match="dgh makes images by the model itself; leave --zoo out"):
        onnxdfq.synthesize(path, method="dgh", zoo=[path], images=4)
    with pytest.raises(InputError, match="need no zoo"):
        onnxdfq.compress(path, method=SHORT, zoo=[path], calibration=natural_images(8, 1, 8), output=tmp_path / "o")
    with pytest.raises(InputError, match="is a model of the zoo"):
        onnxdfq.synthesize(path, method=SHORT, zoo=[path, saved("b")], output=saved("b"), force=True, images=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": 0}, "models is 0; it must be at least 1"),
        ({"models": 1.5}, "models is 1.5; it must be a whole number"),
        ({"coarse": 1.5}, "coarse is 1.5"),
        ({"form": "norms"}, "Unknown form: 'norms'. Did you mean 'norm'"),
        ({"precision": "int8"}, "'int8'"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixmix(**settings)  # type: ignore[arg-type]


def test_the_effort_counts_each_model_of_a_batch() -> None:
    model = FloatModel(graph=onnxdfq.load(DIGITS / "digits.onnx"), source=DIGITS / "digits.onnx")
    recipe = Recipe(minutes=0.08)
    (one, images), (three, as_many) = (method.fitted(model, recipe) for method in (DeepInversion(), Mixmix()))
    assert images == as_many and 100 <= three.steps < 0.5 * one.steps == 150


def test_the_zoo_on_the_command_line(saved: Saved, tmp_path: Path) -> None:
    model, other = str(saved("a")), saved("b", side=6)
    (tmp_path / "zoo.toml").write_text(f'[[model]]\npath = "{other.name}"\nnormalize = "{STANDARD}"\n')
    common = [model, *["-m", "mixmix", "--images", "4", "--steps", "2", "--zoo"], model]
    output = ["--zoo", str(tmp_path / "zoo.toml"), "-o", str(tmp_path / "images.npz")]
    said = CliRunner().invoke(main, ["synthesize", *common, *output, "--json"])
    assert said.exit_code == 0, said.output
    assert [model["name"] for model in json.loads(said.stdout)["card"]["models"]] == ["a.onnx", "b.onnx"]
    shown = CliRunner().invoke(main, ["synthesize", *common, *output, "--force"])
    assert "b.onnx" in shown.stdout and "above 0.9: " in shown.stdout and "; diversity " in shown.stdout
    compressed = CliRunner().invoke(main, ["compress", *common, "-o", str(tmp_path / "c.onnx"), "--json"])
    assert compressed.exit_code == 0 and json.loads(compressed.stdout)["method"] == "mixmix", compressed.output
    written = read_provenance(ir.load(tmp_path / "c.onnx"))
    assert written["zoo"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()[:16]
    refused = CliRunner().invoke(main, ["synthesize", model, "-m", "dgh", *output, "--force"])
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "--zoo" in refused.stderr
