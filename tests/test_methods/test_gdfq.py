"""`--method gdfq` as users run it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import onnxdfq
from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.methods import Gdfq, Method, Noise, configured
from onnxdfq.methods.method import FloatModel
from onnxdfq.recipe import Recipe
from onnxdfq.synthesis import diversity
from onnxdfq.training.loop import Loop
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.work.folder import kept_in

from ..breaking import broken_off, counted
from ..graphs import DIGITS

SHORT = Gdfq(steps=8, warm_up=8, batch_size=16, latent=8, width=8)


def compressed(folder: Path, method: Method = SHORT, **settings: Any) -> onnxdfq.Result:
    common: dict[str, Any] = {"bits": "w3a4", "tuning": "none", "images": 32, "force": True, "normalize": "none"}
    return onnxdfq.compress(DIGITS / "digits.onnx", method=method, output=folder / "q.onnx", **common | settings)


def test_from_the_model_to_a_file(tmp_path: Path) -> None:
    result = compressed(tmp_path, save_images=tmp_path / "images.npz")
    assert result.method == "gdfq" and result.images is not None and len(result.images) == 32
    assert not any("collapsed" in note for note in result.notes)
    assert -1 < (result.metrics["similarity_by_label"] or 0.0) < 1
    assert [row[0] for row in result.metrics["loss_curve"]] == list(range(9))
    assert len(result.metrics["loss_curve"][-1]) == 5, "step, loss, held-back loss, and those of both networks"
    saved = onnxdfq.images.Images.load(tmp_path / "images.npz")
    assert (saved.pixels == result.images.pixels).all() and saved.method == "gdfq"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(seed: int) -> bytes:
        path = compressed(tmp_path, seed=seed).path
        assert path is not None
        return path.read_bytes()

    assert written(1) == written(1) != written(2)


@pytest.mark.slow
def test_targets_do_not_change_one_another(tmp_path: Path) -> None:
    alone = compressed(tmp_path, target="openvino").targets["openvino"].plan
    both = compressed(tmp_path, target=["ort", "openvino"]).targets["openvino"].plan
    assert alone.fingerprint == both.fingerprint


def test_images_of_the_users_own_leave_the_plan_as_it_is(tmp_path: Path) -> None:
    own = np.random.default_rng(0).standard_normal((32, 1, 8, 8)).astype(np.float32)
    result = compressed(tmp_path, calibration=own)
    assert "loss_curve" not in result.metrics
    noise = compressed(tmp_path, Noise(), calibration=own)
    assert result.targets["ort"].plan.fingerprint == noise.targets["ort"].plan.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["generator", "ort"])
def test_it_goes_on_where_it_was_broken_off(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "due", True)
    wanted = compressed(tmp_path).path
    assert wanted is not None
    whole = wanted.read_bytes()
    with broken_off(Loop, "_step", at=5 if stage == "generator" else 13):
        compressed(tmp_path, work_dir=tmp_path / "work")
    assert kept_in(tmp_path / "work")[0].stage == f"gdfq.{stage}"
    with counted(Loop, "_step") as taken:
        again = compressed(tmp_path, work_dir=tmp_path / "work").path
    assert again is not None and again.read_bytes() == whole
    assert len(taken) == (3 + 8 if stage == "generator" else 3)


def test_what_it_cannot_do_it_says(nets: SimpleNamespace, tmp_path: Path) -> None:
    detector = nets.Network()
    x = detector.node("Relu", detector.batch_norm(detector.conv("image", 1, 8), 8))
    boxes = detector.model({"image": ["n", 1, 8, 8]}, {detector.conv(x, 8, 4): ["n", 4, 8, 8]})
    with pytest.raises(InputError, match=r"gdfq asks for images by their labels, and no output .* scores classes.*dgh"):
        onnxdfq.compress(boxes, method=SHORT)
    with pytest.raises(NoBatchNorm, match="gdfq reads the running statistics"):
        onnxdfq.compress(nets.plain_network(norm=False), method=SHORT)


def test_samples_that_are_no_pictures(nets: SimpleNamespace) -> None:
    net = nets.Network()
    x = net.node("Relu", net.batch_norm(net.gemm("x", 6, 8), 8))
    model = net.model({"x": ["n", 6]}, {net.gemm(x, 8, 3): ["n", 3]})
    result = onnxdfq.compress(model, method=SHORT, bits="w4a8", tuning="none", images=16)
    assert result.images is not None and result.images.pixels.shape == (16, 6)
    assert len(result.metrics["loss_curve"]) == 9


def test_a_generator_of_one_picture_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "ALIKE", -1.0)
    told = [note for note in compressed(tmp_path).notes if "collapsed" in note]
    assert len(told) == 1 and "--set gdfq.warm_up=16" in told[0] and "--method dgh" in told[0]


def test_efforts_are_bounded_by_work(nets: SimpleNamespace) -> None:
    assert configured(Gdfq, Recipe(effort="standard")) == Gdfq(steps=2000, warm_up=500)
    large = FloatModel(graph=nets.plain_network(side=64), source=Path("model.onnx"))
    fewer, _ = Gdfq(steps=90_000, warm_up=30_000).fitted(large, Recipe(effort="fast"))
    assert 50 <= fewer.warm_up < 30_000 and fewer.steps == pytest.approx(3 * fewer.warm_up, rel=0.02)
    more, _ = Gdfq(steps=90_000, warm_up=30_000).fitted(large, Recipe(effort="standard"))
    assert more.steps == pytest.approx(5 * fewer.steps, rel=0.02)
    asked = Recipe(effort="fast", settings={"gdfq": {"steps": 90_000}})
    assert Gdfq(steps=90_000).fitted(large, asked)[0].steps == 90_000
    assert Gdfq(steps=7).fitted(large, Recipe(steps=7))[0] == Gdfq(steps=7)
