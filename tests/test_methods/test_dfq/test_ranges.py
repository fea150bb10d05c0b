"""Observations without images: against samples of what is assumed, then against real images."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_threshold
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.methods.dfq.ranges import image_spread, observations_from_batch_norm
from onnxdfq.methods.dfq.unknown import within_known_ranges
from onnxdfq.model_file import load_model
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.moments.moments import Moments, batch_norm_moments

from ...graphs import build

ORT = load_target("ort")
BETA, GAMMA = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.5, 3.0])


def two_layers() -> tuple[ir.Model, dict[str, Any]]:
    model = build(
        "(float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv (x, v) r = Relu (a) y = Conv (r, w) }",
        v=np.ones((3, 3, 1, 1), "f4"),
        w=np.ones((2, 3, 1, 1), "f4"),
    )
    image = image_spread("x", mean=np.zeros(3), std=np.ones(3), low=np.full(3, -2.0), high=np.array([1.0, 2, 3]))
    return model, {"a": Moments(mean=BETA, std=GAMMA), "x": image}


def test_ranges_are_those_of_the_paper() -> None:
    """DFQ: beta ± 6 gamma, the widest channel; from zero on behind Relu."""
    model, known = two_layers()
    observed = observations_from_batch_norm(model, known, [ORT])
    relu = observed.histograms["r"]
    assert (relu.least, relu.greatest) == (0, 2 + 6 * 3)
    assert activation_threshold(relu, 8, "power-of-two", signed=False, limit=None, clipping="max") == 32
    assert activation_threshold(relu, 8, "free", signed=False, limit=None, clipping="max") == pytest.approx(
        20, rel=0.01
    )
    image = observed.histograms["x"]
    assert (image.least, image.greatest) == (-2, 3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_histograms_lead_to_the_thresholds_that_samples_lead_to(bits: int) -> None:
    model, known = two_layers()
    found = observations_from_batch_norm(model, known, [ORT]).histograms["r"]
    sampled = Histogram()
    normal = np.random.default_rng(0).normal(size=(200_000, 3))
    sampled.add(torch.from_numpy(np.maximum(BETA + GAMMA * normal, 0)))
    for histogram in (found, sampled):
        assert histogram.least == 0
    shares = [histogram.counts[len(histogram.counts) // 2] / histogram.counts.sum() for histogram in (found, sampled)]
    assert shares[0] == pytest.approx(shares[1], abs=0.005)  # of zeros
    thresholds = [activation_threshold(h, bits, "free", signed=False, limit=None) for h in (found, sampled)]
    assert thresholds[0] == pytest.approx(thresholds[1], rel=0.05)
    thresholds = [activation_threshold(h, bits, "power-of-two", signed=False, limit=None) for h in (found, sampled)]
    assert thresholds[0] == thresholds[1]


def test_means_are_those_behind_the_activation() -> None:
    model, known = two_layers()
    observed = observations_from_batch_norm(model, known, [ORT])
    normal = np.random.default_rng(0).normal(size=(400_000, 3))
    np.testing.assert_allclose(observed.means["r"].mean, np.maximum(BETA + GAMMA * normal, 0).mean(axis=0), atol=0.01)


def test_means_where_channels_lie_along_another_axis() -> None:
    """Behind a transposition a convolution's input channels are what rows were: each the mean over the old channels."""
    model = build(
        "(float[N,3,4,4] x) => (float[N,2,4,3] y) "
        "{ a = Conv (x, v) r = Relu (a) p = Transpose <perm = [0, 2, 3, 1]> (r) y = Conv (p, w) }",
        v=np.ones((3, 3, 1, 1), "f4"),
        w=np.ones((2, 4, 1, 1), "f4"),
    )
    observed = observations_from_batch_norm(model, two_layers()[1], [ORT])
    normal = np.random.default_rng(0).normal(size=(400_000, 3))
    np.testing.assert_allclose(observed.means["p"].mean, np.maximum(BETA + GAMMA * normal, 0).mean(), atol=0.01)
    assert observed.means["p"].mean.shape == (4,)
    assert set(Calibration().decide(model, observed, ORT).biases) == {"Conv_a", "Conv_y"}


def test_a_plan_follows_without_an_image() -> None:
    model, known = two_layers()
    plan = Calibration().decide(model, observations_from_batch_norm(model, known, [ORT]), ORT)
    assert set(plan.activations) == {"x", "r", "y"}
    assert set(plan.biases) == {"Conv_a", "Conv_y"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "a = Conv (x, v) s = Cos (a) y = Conv (s, w)",
            r"^The range of 's', from Cos 'Cos_s', .* \(values without a range: 2, values without means: 1",
        ),
        ("a = Conv (x, v) s = MatMul (a, a) y = Conv (s, w)", "'s', from MatMul 'MatMul_s'.*--method dgh"),
        # its range is that of what it moves, but the mean that corrects the bias is not known
        (
            "a = Conv (x, v) s = ReduceMax <keepdims = 1> (a, n) y = Conv (s, w)",
            r"^The mean of each channel of 's', from ReduceMax 'ReduceMax_s', by which .* without means: 1\)",
        ),
        ("a = Conv (x, v) c = Cos (a) s = Sigmoid (c) y = Conv (s, w)", "^The range of 'c', from Cos"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(body: str, message: str) -> None:
    model = build(
        f"(float[N,3,4,4] x) => (float[N,2,h,w2] y) {{ {body} }}",
        v=np.ones((3, 3, 1, 1), "f4"),
        w=np.ones((2, 3, 1, 1), "f4"),
        **({"n": np.array([2, 3])} if "n)" in body else {}),
    )
    with pytest.raises(InputError, match=message):
        observations_from_batch_norm(model, two_layers()[1], [ORT])


@pytest.mark.parametrize(
    ("operator", "low", "high"),
    [
        ("Sigmoid (b)", 0, 1),
        ("HardSigmoid (b)", 0, 1),
        ("Softmax <axis = -1> (b)", 0, 1),
        ("Tanh (b)", -1, 1),
        ("Softsign (b)", -1, 1),
        ("Clip (b, low, high)", -0.5, 2),
    ],
)
def test_a_known_range_stands_in_where_no_distribution_follows(operator: str, low: float, high: float) -> None:
    """MatMul of two activations has no rule; what is computed behind it still lies within the function's range."""
    text = f"a = Conv (x, v) b = MatMul (a, a) y = {operator}"
    bounds = {"low": np.float32(-0.5), "high": np.float32(2)} if "low" in operator else {}
    model = build(f"(float[N,3,4,4] x) => (float[N,3,4,4] y) {{ {text} }}", v=np.ones((3, 3, 1, 1), "f4"), **bounds)
    known = two_layers()[1]
    if "low" not in operator:  # with the Clip the range in front of it is of no interest
        with pytest.raises(
            InputError, match=r"^The range of 'b', from MatMul 'MatMul_b', .*values without a range: 1\)"
        ):
            observations_from_batch_norm(model, known, [ORT])
    else:
        told = observations_from_batch_norm(model, known, [ORT]).histograms["y"]
        assert (told.least, told.greatest) == pytest.approx((low, high), abs=1e-6)
    found = observations_from_batch_norm(model, known | {"b": Moments(mean=BETA, std=GAMMA)}, [ORT]).histograms["y"]
    assert (found.least, found.greatest) == pytest.approx((low, high), abs=0.2)  # what the distribution reaches
    name, spread = next(within_known_ranges(model, {"y"}))
    assert name == "y"
    assert (spread.points.min(), spread.points.max()) == pytest.approx((low, high), abs=1e-6)
    assert spread.mean == pytest.approx([(low + high) / 2])
    assert spread.std == pytest.approx([(high - low) / 12**0.5], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [("ppocr_cls", {"x": (1, 3, 48, 192)}), ("pplcnet_orientation", {}), ("fastestdet_coco", {})],
)
def test_networks_that_end_in_a_softmax(shared_data: Path, tmp_path: Path, name: str, shapes: dict[str, Any]) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    result = onnxdfq.compress(path, method="dfq", output=tmp_path / "q.onnx", input_shape=shapes or None)
    assert result.method == "dfq"


def test_float_activations_need_only_means() -> None:
    model = build(
        "(float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv (x, v) r = Relu (a) s = Conv (r, w) y = Cos (s) }",
        v=np.ones((3, 3, 1, 1), "f4"),
        w=np.ones((2, 3, 1, 1), "f4"),
    )
    observed = observations_from_batch_norm(model, two_layers()[1], [ORT], activations=False)
    assert (set(observed.histograms), set(observed.means)) == (set(), {"x", "r"})
    plan = Calibration(weight_bits=4, activation_bits=32).decide(model, observed, ORT)
    assert (set(plan.activations), set(plan.biases)) == (set(), {"Conv_a", "Conv_s"})


def test_an_unknown_input_is_refused_by_name() -> None:
    model, known = two_layers()
    del known["x"]
    with pytest.raises(InputError, match="input 'x' is not known"):
        observations_from_batch_norm(model, known, [ORT])


@pytest.mark.slow
def test_real_network(shared_data: Path) -> None:
    """On a trained ResNet-20 the ranges and the channel means are those that real images show."""
    model = load_model(shared_data / "models" / "resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    known: dict[str, Any] = dict(batch_norm_moments(model))
    FoldBatchNorm()(model)
    (name,) = [value.name for value in model.graph.inputs]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    known[name or ""] = image_spread(
        name or "", mean=(0.45 - mean) / std, std=0.25 / std, low=-mean / std, high=(1 - mean) / std
    )
    images = np.load(shared_data / "cifar10jpeg_train10k.npz")["images"][::50] / 255.0
    pixels = ((images - mean) / std).transpose(0, 3, 1, 2).astype("f4")
    calibration = Calibration(weight_bits=4)
    told = observations_from_batch_norm(model, known, [ORT])
    shown = calibration.observe(model, pixels, [ORT])
    plans = [calibration.decide(model, observed, ORT) for observed in (told, shown)]
    ratios = [
        float(quant.threshold / plans[1].activations[name].threshold) for name, quant in plans[0].activations.items()
    ]
    assert all(0.5 <= ratio <= 2 for ratio in ratios), ratios
    assert np.mean(np.asarray(ratios) == 1) > 0.6
    layers = [node for node in model.graph if node.name in plans[0].biases]
    assert len(layers) == 20
    with torch.no_grad():
        values = TorchGraph(model, outputs=[str(node.inputs[0].name) for node in layers])(torch.from_numpy(pixels))
    for node, value in zip(layers, values, strict=True):
        actual = value.double().transpose(0, 1).flatten(1)
        error = told.means[str(node.inputs[0].name)].mean - actual.mean(dim=1).numpy()
        assert np.sqrt(np.square(error).mean()) < 0.35 * float(actual.std(dim=1).square().mean().sqrt()), node.name
