"""The input range: told, measured on networks whose images are known, and assumed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import load_model
from onnxdfq.synthesis.input_range import input_range
from passes.canonical.canonicalize import Canonicalize

from ..slow import slow


def test_normalization_as_told(small_model: ir.Model) -> None:
    found = input_range(small_model, Normalization(mean=(0.5,), std=(0.2,)))
    np.testing.assert_allclose(found.mean, [(0.45 - 0.5) / 0.2], rtol=1e-6)
    np.testing.assert_allclose(found.std, [0.25 / 0.2], rtol=1e-6)
    black, white = found.mean + found.std * found.low, found.mean + found.std * found.high
    np.testing.assert_allclose([black[0], white[0]], [(0 - 0.5) / 0.2, (1 - 0.5) / 0.2], rtol=1e-5)
    assert found.source == "normalization"


def test_normalization_of_other_channels_is_refused(small_model: ir.Model) -> None:
    with pytest.raises(DataError, match="3 channels, the model's image input has 1"):
        input_range(small_model, Normalization(mean=(0.5, 0.5, 0.5), std=(0.2,)))


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0, 0.0, 0.0), 1.0), ((0.48, 0.45, 0.4), 0.25), ((125.0, 120.0, 110.0), 60.0)]
)
def test_range_is_read_off_the_first_batch_norm(nets: SimpleNamespace, mean: tuple[float, ...], std: float) -> None:
    """The same network trained on three conventions; the estimate is within a fifth of a deviation, and 25 %."""
    net = nets.Network(seed=3)
    y = net.node("Relu", net.batch_norm(net.conv("image", 3, 16), 16))
    model = net.model({"image": ["batch", 3, 16, 16]}, {y: ["batch", 16, 16, 16]})
    images = np.array(mean, np.float32)[:, None, None] + std * nets.natural_images(256, 3, 16, seed=5)
    nets.fit_batch_norms(model, [images.astype(np.float32)])
    found = input_range(model, None)
    assert found.source == "estimated from n1"
    np.testing.assert_allclose(found.mean, mean, atol=0.2 * std)
    np.testing.assert_allclose(found.std, std, rtol=0.25)


def test_range_is_assumed_where_no_affine_map_leads_to_a_batch_norm(nets: SimpleNamespace) -> None:
    net = nets.Network()
    y = net.batch_norm(net.node("Relu", net.conv("image", 1, 4)), 4)
    model = net.model({"image": ["batch", 1, 8, 8]}, {y: ["batch", 4, 8, 8]})
    found = input_range(model, None)
    assert (found.source, found.mean.tolist(), found.std.tolist()) == ("assumed standardised", [0.0], [1.0])


def test_more_channels_than_probe_images(nets: SimpleNamespace) -> None:
    net = nets.Network()
    y = net.batch_norm(net.conv("image", 40, 48), 48)
    model = net.model({"image": ["batch", 40, 8, 8]}, {y: ["batch", 48, 8, 8]})
    nets.fit_batch_norms(model, [2 + nets.natural_images(512, 40, 8)])
    found = input_range(model, None)
    np.testing.assert_allclose(found.mean, 2, atol=0.5)
    np.testing.assert_allclose(found.std, 1, rtol=0.3)


def test_an_input_that_is_no_image_has_a_range_too(nets: SimpleNamespace) -> None:
    net = nets.Network()
    y = net.batch_norm(net.gemm("x", 6, 4), 4)
    found = input_range(net.model({"x": ["batch", 6]}, {y: ["batch", 4]}), None)
    assert found.mean.shape == (6,) and (found.low == -4).all() and (found.high == 4).all()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet20_cifar10", (-0.06, 0.0, 0.0), 1.05),
        slow(("resnet8_cifar10", (123.0, 120.0, 110.0), 63.0)),
        slow(("mobilenetv1_vww", (0.46, 0.44, 0.40), 0.26)),
        slow(("fastestdet_coco", (0.41, 0.44, 0.465), 0.28)),  # BGR: blue, the darkest, comes first
    ],
)
def test_range_of_real_models(shared_data: Path, name: str, mean: tuple[float, ...], std: float) -> None:
    """Truth measured on real images; the estimate needs none: a third of a deviation, and 40 %."""
    model = load_model(shared_data / "models" / f"{name}.onnx")
    Canonicalize()(model)
    found = input_range(model, None)
    np.testing.assert_allclose(found.mean, mean, atol=std / 3)
    np.testing.assert_allclose(found.std, std, rtol=0.4)
