"""DGH on small networks: it does what it says, in every shape of network."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.images import Images
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Dgh, Noise
from onnxdfq.synthesis.losses import LossForm, stretching_loss
from onnxdfq.synthesis.quality import evaluate_images

from ..slow import slow

STANDARD = Normalization(mean=(0.45,), std=(0.25,))  # images of mean 0 and deviation 1, as the test networks remember


@pytest.mark.parametrize(("form", "share"), [("relative", 0.1), slow(("public", 0.1)), slow(("paper", 0.25))])
def test_statistics_come_close_to_the_running_ones(small_model: ir.Model, form: LossForm, share: float) -> None:
    method = Dgh(steps=200, batch_size=16, loss_form=form, stretching=0.0)
    images = method.synthesize(small_model, count=40, seed=0, normalization=STANDARD)
    noise = Noise().synthesize(small_model, count=40, seed=0, normalization=STANDARD)
    assert images.pixels.shape == (40, 1, 8, 8)
    assert images.pixels.dtype == np.float32
    distance = evaluate_images(small_model, images).bn_distance
    assert distance < share * evaluate_images(small_model, noise).bn_distance


def test_pixels_stay_in_the_range_of_bytes(small_model: ir.Model) -> None:
    images = Dgh(steps=20).synthesize(
        small_model, count=8, seed=0, normalization=Normalization(mean=(0.3,), std=(0.2,))
    )
    pixels = images.pixels * 0.2 + 0.3
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6


def test_stretching_widens_the_output(small_model: ir.Model) -> None:
    def ranges(method: Dgh) -> float:
        from onnxdfq.engine import TorchGraph

        images = method.synthesize(small_model, count=16, seed=0, normalization=STANDARD)
        with torch.no_grad():
            (logits,) = TorchGraph(small_model)(torch.from_numpy(images.pixels))
        return float((logits.amax(1) - logits.amin(1)).mean())

    for form, weight in (("relative", 0.1), ("public", 0.1), ("paper", 1.0)):
        plain = ranges(Dgh(steps=30, loss_form=form, stretching=0.0))  # type: ignore[arg-type]
        assert ranges(Dgh(steps=30, loss_form=form, stretching=weight)) > 1.2 * plain  # type: ignore[arg-type]


def test_same_seed_same_bytes_and_another_seed_others(small_model: ir.Model) -> None:
    method = Dgh(steps=5, batch_size=8)
    first, again = (method.synthesize(small_model, count=20, seed=3) for _ in range(2))
    other = method.synthesize(small_model, count=20, seed=4)
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.provenance == again.provenance
    assert not np.allclose(first.pixels, other.pixels)


def test_the_model_is_only_read(small_model: ir.Model) -> None:
    before = ir.to_proto(small_model).SerializeToString(deterministic=True)
    Dgh(steps=2).synthesize(small_model, count=4, seed=0)
    assert ir.to_proto(small_model).SerializeToString(deterministic=True) == before


def test_progress_counts_every_visit(small_model: ir.Model) -> None:
    seen: list[tuple[int, int, str]] = []
    Dgh(steps=3, batch_size=4).synthesize(
        small_model, count=10, seed=0, progress=lambda done, total, note, /: seen.append((done, total, note))
    )
    assert [(done, total) for done, total, _ in seen] == [(done, 9) for done in range(1, 10)]
    assert all(note.startswith("loss ") for *_, note in seen)


@pytest.mark.slow
def test_statistics_are_of_the_set_not_of_each_batch(small_model: ir.Model) -> None:
    """With a batch of one, the set fits while single images are free to differ: their means must spread."""
    images = Dgh(steps=60, batch_size=1, stretching=0.0).synthesize(
        small_model, count=24, seed=0, normalization=STANDARD
    )
    assert evaluate_images(small_model, images).bn_distance < 0.05
    assert images.pixels.mean((1, 2, 3)).std() > 0.1


@pytest.mark.slow
def test_without_aggregation_each_batch_fits_by_itself(small_model: ir.Model) -> None:
    method = Dgh(steps=60, batch_size=2, stretching=0.0)
    distances = []
    for aggregate in (True, False):
        images = replace(method, aggregate=aggregate).synthesize(small_model, count=16, seed=0)
        batches = [Images(pixels=pair, method="dgh", seed=0) for pair in np.split(images.pixels, 8)]
        distances.append(np.mean([evaluate_images(small_model, batch).bn_distance for batch in batches]))
    assert distances[1] < 0.7 * distances[0]


def test_without_the_image_prior_pixels_are_left_as_they_are(small_model: ir.Model) -> None:
    def roughness(images: Images) -> float:
        return float(np.abs(np.diff(images.pixels)).mean() / images.pixels.std())

    smooth, rough = (
        Dgh(steps=2, batch_size=8, image_prior=prior).synthesize(small_model, count=8, seed=0)
        for prior in (True, False)
    )
    assert roughness(smooth) < 0.7 * roughness(rough)


@pytest.mark.parametrize(
    ("logits", "stretched"),
    [([[9.0, 0.0]], False), ([[1.5, 0.2]], True), ([[0.995, 0.005]], False), ([[0.9, 0.1]], True)],
)
def test_a_sure_classifier_is_stretched_no_further(logits: list[list[float]], stretched: bool) -> None:
    outputs = torch.tensor(logits, requires_grad=True)
    (gradient,) = torch.autograd.grad(stretching_loss("relative", [outputs], torch.zeros(2, 1)), outputs)
    assert bool(gradient.abs().sum() > 0) is stretched
    image = torch.tensor([[[9.0, 0.0]]], requires_grad=True)  # no classes along axis 1
    (gradient,) = torch.autograd.grad(stretching_loss("relative", [image], torch.zeros(2, 1)), image)
    assert bool(gradient.abs().sum() > 0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_and_sides_that_are_not_square(nets: SimpleNamespace, channels: int) -> None:
    net = nets.Network()
    y = net.node("GlobalAveragePool", net.node("Relu", net.batch_norm(net.conv("image", channels, 4), 4)))
    model = net.model({"image": ["batch", channels, 5, 12]}, {y: ["batch", 4, 1, 1]})
    assert Dgh(steps=2).synthesize(model, count=3, seed=0).pixels.shape == (3, channels, 5, 12)


def test_every_shape_of_network_at_once(nets: SimpleNamespace) -> None:
    """A second and a third input, two outputs and a feature map, a Gemm's and a rank-3 BatchNormalization, one value
    that two of them normalise, and an integer output."""
    net = nets.Network()
    x = net.conv("image", 2, 4)
    x = net.node("Relu", net.node("Add", net.batch_norm(x, 4), net.batch_norm(x, 4)))
    x = net.node("Add", x, "offset")
    tokens = net.node("Reshape", x, net.constant(np.array([0, 4, -1], np.int64)))
    tokens = net.batch_norm(tokens, 4)
    flat = net.gemm(net.node("Flatten", tokens), 4 * 36, 6)
    logits = net.node("Relu", net.batch_norm(flat, 6))
    scaled = net.node("Mul", logits, net.node("Cast", "scale", to=1))
    best = net.node("ArgMax", scaled, axis=1)
    model = net.model(
        {"offset": [6], "image": ["batch", 2, 6, 6], "scale": [1]},
        {scaled: ["batch", 6], x: ["batch", 4, 6, 6], best: ["batch", 1]},
        integers=["scale"],
    )
    model.graph.outputs[2].dtype = ir.DataType.INT64
    feeds = [np.zeros(6, np.float32), nets.natural_images(64, 2, 6), np.ones(1, np.int64)]
    nets.fit_batch_norms(model, feeds)
    normalization = Normalization(mean=(0.45,), std=(0.25,))
    images = Dgh(steps=60, batch_size=16).synthesize(model, count=24, seed=0, normalization=normalization)
    noise = Noise().synthesize(model, count=24, seed=0, normalization=normalization)
    assert evaluate_images(model, images).bn_distance < 0.3 * evaluate_images(model, noise).bn_distance


def test_a_model_of_one_batch_size_gives_as_many_images_as_asked(nets: SimpleNamespace) -> None:
    model = nets.plain_network(batch=4)
    images = Dgh(steps=2).synthesize(model, count=6, seed=0)
    assert len(images) == 6
    assert np.isfinite(evaluate_images(model, images).bn_distance)


def test_an_image_of_one_pixel(nets: SimpleNamespace) -> None:
    net = nets.Network()
    y = net.batch_norm(net.conv("image", 3, 4), 4)
    model = net.model({"image": ["batch", 3, 1, 1]}, {y: ["batch", 4, 1, 1]})
    assert Dgh(steps=8).synthesize(model, count=4, seed=0).pixels.shape == (4, 3, 1, 1)


@pytest.mark.slow
def test_float32_and_bfloat16_reach_the_same_distance(small_model: ir.Model) -> None:
    distances = [
        evaluate_images(
            small_model,
            Dgh(steps=200, precision=precision, stretching=0.0).synthesize(  # type: ignore[arg-type]
                small_model, count=32, seed=0, normalization=STANDARD
            ),
        ).bn_distance
        for precision in ("float32", "bfloat16")
    ]
    assert max(distances) < 0.02


def test_no_batch_norm_says_why_and_what_to_do(nets: SimpleNamespace) -> None:
    model = nets.plain_network(norm=False)
    with pytest.raises(NoBatchNorm) as caught:
        Dgh(steps=1).synthesize(model, count=1, seed=0)
    message = str(caught.value)
    for part in ("dgh", "folded at export", "onnxdfq.export", "TrainingMode.PRESERVE", "optimize=False"):
        assert part in message
    assert "--method dead-leaves" in message
    assert "--calibration FILE" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rate": 0.0}, "rate is 0.0; it must be above 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"stretching": -1.0}, "stretching is -1.0"),
        ({"loss_form": "papers"}, "Unknown loss_form: 'papers'. Did you mean 'paper'"),
        ({"precision": "int8"}, "'int8'"),
    ],
)
def test_settings_are_checked_once(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Dgh(**settings)  # type: ignore[arg-type]
