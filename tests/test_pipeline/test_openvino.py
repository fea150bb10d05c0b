"""What OpenVINO computes from our files, against the engine."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq.dataset import Normalization, load_dataset
from onnxdfq.engine import TorchGraph
from onnxdfq.model_file import image_input

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
@pytest.mark.parametrize("target", ["ort", "openvino"])
@pytest.mark.parametrize(
    ("name", "images", "normalize"),
    [
        ("resnet20_cifar10jpeg", "cifar10_test932", "imagenet"),
        ("resnet8_cifar10", "cifar10_test932", "0/0.00392156862745098"),
        ("mobilenetv1_vww", "vww_coco256", "none"),
    ],
)
def test_openvino_decides_as_the_engine_does(
    shared_data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    name: str,
    images: str,
    normalize: str,
    target: str,
    bits: str,
) -> None:
    if (name, target) == ("resnet8_cifar10", "ort"):
        reason = "98.4 to 98.8 %: OpenVINO does not round between a Conv and a sum; its own target does not ask it to"
        request.applymarker(pytest.mark.xfail(reason=reason))
    onnxdfq.compress(
        shared_data / "models" / f"{name}.onnx",
        output=tmp_path / "q.onnx",
        method="dgh",
        steps=100,
        images=64,
        normalize=normalize,
        bits=bits,
        target=target,
        tuning="none",
    )
    model = ir.load(tmp_path / "q.onnx")
    data = load_dataset(
        shared_data / f"{images}.npz", spec=image_input(model), normalization=Normalization.parse(normalize)
    )
    pixels = next(data.batches(256))
    with torch.no_grad():
        (engine,) = TorchGraph(model)(torch.from_numpy(pixels))
    compiled = openvino.Core().compile_model(str(tmp_path / "q.onnx"), "CPU")
    found = np.concatenate([compiled(pixels[start : start + 64])[0] for start in range(0, len(pixels), 64)])
    assert (found.argmax(1) == engine.numpy().argmax(1)).mean() >= 0.99
    if target == "openvino" and name != "mobilenetv1_vww":
        assert (found == engine.numpy()).mean() > 0.999
