"""The table of methods, the baselines, and the measures of images."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.images import Images
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Dgh, Noise, ZeroQ, configured, load_method
from onnxdfq.methods.method import IMAGE_COUNT
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.names import method_names
from onnxdfq.synthesis.quality import evaluate_images

STANDARD = Normalization(mean=(0.45,), std=(0.25,))


def test_efforts_and_what_overrules_them() -> None:
    assert configured(Dgh, Recipe(effort="paper")) == Dgh(steps=1000)
    assert configured(ZeroQ, Recipe()) == ZeroQ(steps=200) and configured(ZeroQ, Recipe(effort="paper")) == ZeroQ()
    recipe = Recipe(effort="paper", steps=5, batch_size=3, settings={"dgh": {"batch_size": 4, "rate": 8}})
    assert configured(Dgh, recipe) == Dgh(steps=5, batch_size=4, rate=8.0)
    assert configured(Noise, Recipe(steps=5)) == Noise()
    for name in method_names():
        assert load_method(name).efforts.keys() <= IMAGE_COUNT.keys()


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(InputError, match=r"Unknown method: 'zerok'.*Did you mean 'zeroq'"):
        load_method("zerok")
    with pytest.raises(InputError, match=r"Unknown effort: 'quick'.*Allowed: fast, standard, paper"):
        Recipe(effort="quick")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Unknown key in the settings of dgh: 'stepz'.*Did you mean 'steps'"):
        configured(Dgh, Recipe(settings={"dgh": {"stepz": 3}}))
    with pytest.raises(InputError, match=r"steps in the settings of dgh is 'x': it must be `int`, not `str`"):
        configured(Dgh, Recipe(settings={"dgh": {"steps": "x"}}))


def test_noise_is_gaussian_clamped_and_reproducible(small_model: ir.Model) -> None:
    first, again = (
        Noise(batch_size=7).synthesize(small_model, count=300, seed=1, normalization=STANDARD) for _ in range(2)
    )
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.pixels.min() == pytest.approx(-1.8)
    assert first.pixels.max() == pytest.approx(2.2)
    assert abs(first.pixels.mean()) < 0.05
    assert first.pixels.std() == pytest.approx(1, abs=0.05)
    longer = Noise(batch_size=7).synthesize(small_model, count=400, seed=1, normalization=STANDARD)
    assert np.array_equal(longer.pixels[:300], first.pixels)


def test_noise_works_without_batch_norm_and_zeroq_does_not(nets: SimpleNamespace) -> None:
    model = nets.plain_network(norm=False)
    assert len(Noise().synthesize(model, count=2, seed=0)) == 2
    with pytest.raises(NoBatchNorm, match="zeroq reads"):
        ZeroQ(steps=1).synthesize(model, count=1, seed=0)


def test_zeroq_fits_each_image_by_itself(small_model: ir.Model) -> None:
    """Its images agree with one another where DGH's, fitted as a set, differ; both reduce the distance of noise."""
    zeroq = ZeroQ(steps=150, batch_size=8).synthesize(small_model, count=12, seed=0, normalization=STANDARD)
    dgh = Dgh(steps=60, batch_size=8).synthesize(small_model, count=12, seed=0, normalization=STANDARD)
    noise = Noise().synthesize(small_model, count=12, seed=0, normalization=STANDARD)
    assert evaluate_images(small_model, zeroq).bn_distance < 0.5 * evaluate_images(small_model, noise).bn_distance
    assert zeroq.pixels.mean((1, 2, 3)).std() < 0.5 * dgh.pixels.mean((1, 2, 3)).std()


def test_zeroq_is_reproducible_and_reports_progress(small_model: ir.Model) -> None:
    seen: list[tuple[int, int]] = []
    method = ZeroQ(steps=3, batch_size=4)
    first = method.synthesize(
        small_model, count=6, seed=0, progress=lambda done, total, _, /: seen.append((done, total))
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert first.pixels.tobytes() == method.synthesize(small_model, count=6, seed=0).pixels.tobytes()


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": 0}, {"rate": -1.0}, {"precision": "half"}])
def test_zeroq_checks_its_settings(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ZeroQ(**settings)  # type: ignore[arg-type]


def test_quality_of_the_very_images_that_made_the_statistics_is_perfect(
    nets: SimpleNamespace, small_model: ir.Model
) -> None:
    images = Images(pixels=nets.natural_images(256, 1, 8), method="file", seed=0)
    quality = evaluate_images(small_model, images, batch_size=100)
    assert quality.bn_distance < 1e-5


def test_share_of_confident_images_by_hand(nets: SimpleNamespace) -> None:
    """Logits are the two pixels: softmax above 0.9 where they differ by more than ln 9 = 2.197."""
    net = nets.Network()
    identity = net.constant(np.eye(2, dtype=np.float32))
    flat = net.node("Flatten", "image")
    logits = net.node("MatMul", flat, identity)
    net.batch_norm(flat, 2)
    pixels = np.array([[0, 2.3], [3, 0], [1, 1], [0, 2.1]], np.float32).reshape(4, 1, 1, 2)
    images = Images(pixels=pixels, method="file", seed=0)
    model = net.model({"image": ["batch", 1, 1, 2]}, {logits: ["batch", 2]})
    assert evaluate_images(model, images).confident == 0.5
    probabilities = net.node("Softmax", logits)
    model = net.model({"image": ["batch", 1, 1, 2]}, {probabilities: ["batch", 2]})
    assert evaluate_images(model, images).confident == 0.5
    model = net.model({"image": ["batch", 1, 1, 2]}, {"image": ["batch", 1, 1, 2]})
    assert evaluate_images(model, images).confident is None
