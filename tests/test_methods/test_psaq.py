"""PSAQ-ViT: what its losses measure, what its images are, and what it refuses."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq import methods
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError, NoAttention
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import DeadLeaves, FloatModel, Method, Need, Psaq
from onnxdfq.methods.psaq import schedule
from onnxdfq.pipeline.compression import needs_met
from onnxdfq.recipe import Recipe
from onnxdfq.synthesis.attention import AttendingNetwork, leading_tokens, patch_entropy
from onnxdfq.synthesis.losses import class_logits
from onnxdfq.synthesis.priors import total_variation

from ..graphs import build, two_layers, vit

HALF = Normalization(mean=(0.5,), std=(0.25,))


def test_entropy_is_that_of_the_kernel_density_of_all_pairs() -> None:
    features = torch.randn(3, 17, 6, generator=torch.Generator().manual_seed(0))
    found = patch_entropy(features, 3)
    patches = torch.nn.functional.normalize(features[:, 1:], dim=2)  # 17 = a class token and 4 × 4
    similarities = (patches @ patches.transpose(1, 2)).reshape(3, -1).double().numpy()
    points = np.linspace(similarities.min(), 1, 10)
    kernels = np.exp(-(((points[:, None, None] - similarities) / 0.01) ** 2) / 2) / (0.01 * math.sqrt(2 * math.pi))
    density = kernels.mean(2) + 1e-4
    expected = np.trapezoid(-density * np.log(density), points, axis=0).mean()
    np.testing.assert_allclose(float(found), expected, rtol=1e-4)
    # the windows of one image count as one
    windows = patch_entropy(features[:2].repeat(3, 1, 1).reshape(6, 17, 6), 3)
    np.testing.assert_allclose(float(windows), float(patch_entropy(features[:2], 1)), rtol=1e-5)


def test_alike_patches_have_less_entropy_than_different_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    common, own = torch.randn(2, 1, 6, generator=generator), torch.randn(2, 64, 6, generator=generator)
    alike, different = (patch_entropy(common + share * own, 2) for share in (0.02, 1.0))
    assert float(alike) < float(different)


def test_leading_tokens_are_those_beyond_a_square() -> None:
    assert [leading_tokens(count) for count in (65, 197, 198, 49, 64, 60, 1, 2)] == [1, 1, 2, 0, 0, 0, 0, 1]


def test_each_round_warms_up_and_ends_near_nothing() -> None:
    found = [schedule(step, 1000) for step in range(1000)]
    assert found[0] == (0, 0.01) and found[100] == (0, 1.0) and found[600] == (1, 1.0)
    assert found[499][1] < 1e-3 and found[999][1] < 1e-3
    assert [schedule(step, 3)[0] for step in range(3)] == [0, 1, 1] and schedule(0, 1) == (1, 1.0)


def test_variation_is_the_same_for_images_of_any_number_and_size() -> None:
    generator = torch.Generator().manual_seed(0)
    few = total_variation(torch.randn(2, 3, 64, 64, generator=generator))
    many = total_variation(torch.randn(8, 1, 96, 96, generator=generator))
    # four norms of differences of deviation √2, of 32·3·224² numbers
    expected = 4 * math.sqrt(2 * 32 * 3 * 224**2)
    np.testing.assert_allclose([float(few), float(many)], expected, rtol=0.03)


def test_logits_of_probabilities_are_their_logarithms() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    found = class_logits(logits.softmax(1)[..., None])
    assert found is not None and torch.allclose(found.softmax(1), logits.softmax(1))
    assert torch.equal(class_logits(logits), logits)  # type: ignore[arg-type]
    assert class_logits(torch.zeros(2, 3, 4)) is None


def test_images_have_the_entropy_and_the_classes_that_they_are_made_for() -> None:
    model = vit()
    settings = {"count": 20, "seed": 3, "normalization": HALF}
    start = DeadLeaves(steps=0).synthesize(model, **settings)  # type: ignore[arg-type]
    made, again = (Psaq(steps=12, batch_size=10, stretching=0).synthesize(model, **settings) for _ in range(2))  # type: ignore[arg-type]
    assert made.pixels.shape == (20, 3, 16, 16) and made.pixels.dtype == np.float32
    assert made.pixels.tobytes() == again.pixels.tobytes()
    assert made.pixels.min() >= -2 - 1e-5 and made.pixels.max() <= 2 + 1e-5  # (0 to 1 - .5) / .25
    network = AttendingNetwork(model, method="psaq", device="cpu")

    def measured(pixels: Any) -> tuple[float, float]:
        with torch.no_grad():
            (features,), _, logits = network.forward(torch.from_numpy(pixels))
        assert features.shape == (20, 16, 4) and logits is not None and logits.shape == (20, 5)
        return float(patch_entropy(features, 20)), float(logits.softmax(1).amax(1).mean())

    assert measured(made.pixels)[0] > measured(start.pixels)[0] + 0.1
    with_classes, without = (
        measured(Psaq(steps=12, batch_size=10, stretching=0, classes=weight).synthesize(model, **settings).pixels)  # type: ignore[arg-type]
        for weight in (20.0, 0.0)
    )
    assert with_classes[1] > without[1] + 0.1
    stretched = Psaq(steps=12, batch_size=10).synthesize(model, **settings)  # type: ignore[arg-type]
    assert 0.05 < np.abs(stretched.pixels - made.pixels).max() < 0.35  # ten steps of .03
    other = Psaq(steps=4, batch_size=8).synthesize(model, count=20, seed=4, normalization=HALF)
    assert not np.array_equal(other.pixels, made.pixels)


def test_a_model_of_one_batch_size_and_the_steps_that_are_told() -> None:
    seen: list[tuple[int, int]] = []
    images = Psaq(steps=3).synthesize(
        vit(batch=4), count=6, seed=0, normalization=HALF, progress=lambda done, total, _, /: seen.append((done, total))
    )
    assert images.pixels.shape == (6, 3, 16, 16) and seen == [(done, 26) for done in range(1, 27)]


def test_without_attention_it_says_what_works(small_model: ir.Model) -> None:
    with pytest.raises(NoAttention, match="psaq makes pictures by the attention of a transformer, and the model has"):
        Psaq().synthesize(small_model, count=1, seed=0)


def test_an_attention_of_one_token_is_left_out() -> None:
    """The last one of some networks pools: a single query."""
    text = """(float[N,3,4,4] image) => (float[N,4,1,1] y) {
        c = Conv <kernel_shape=[1,1]> (image, w)
        f = Reshape (c, flat)
        t = Transpose <perm=[0,2,1]> (f)
        m = ReduceMean (t, axis)
        s = MatMul (m, f)
        p = Softmax <axis=-1> (s)
        o = MatMul (p, t)
        y = Reshape (o, image_shape)
    }"""
    model = build(
        text,
        w=np.ones((4, 3, 1, 1), np.float32),
        flat=np.array([0, 4, 16]),
        axis=np.array([1]),
        image_shape=np.array([0, 4, 1, 1]),
    )
    with pytest.raises(NoAttention, match="none of the model's attentions is over the patches of one image"):
        AttendingNetwork(model, method="psaq", device="cpu").forward(torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"rate": 0.0}, {"classes": -1.0}, {"smoothness": -1.0}, {"stretching": -1}]
)
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Psaq(**settings)  # type: ignore[arg-type]


def test_a_transformer_is_compressed_with_them() -> None:
    result = onnxdfq.compress(vit(), method=Psaq(steps=4), images=16, bits="w8a8", normalize="0.5/0.25")
    assert result.method == "psaq" and result.images is not None and result.images.method == "psaq"
    assert float(result.metrics["sqnr_db_held_back"] or 0) > 8
    assert TorchGraph(vit())(torch.zeros(1, 3, 16, 16))[0].shape == (1, 5)


def test_auto_takes_it_for_a_vision_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: dict[str, type[Method]] = {"dead-leaves": DeadLeaves, "dgh": onnxdfq.Dgh, "psaq": Psaq}
    # by class, not by entry point: of an older installation none tells of psaq
    monkeypatch.setattr(methods, "method_names", lambda: list(kinds))
    monkeypatch.setattr(methods, "load_method", kinds.__getitem__)
    request: Any = SimpleNamespace(recipe=Recipe())
    for model, name in ((vit(), "psaq"), (two_layers(), "dead-leaves")):
        met = needs_met(request, FloatModel(graph=model, source=Path("m.onnx")))
        chosen, reason = methods.choose_method(request.recipe, met)
        assert chosen.name == name
        assert ("the model is a vision transformer" in reason) and ("chosen as" in reason) == (name == "psaq")
    both, _ = methods.choose_method(request.recipe, frozenset({Need.ATTENTION, Need.BATCH_NORM}))
    assert both.name == "dgh"
