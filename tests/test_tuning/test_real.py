"""Real networks, tuned: the engine and ONNX Runtime compute the same."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

import onnxdfq
from onnxdfq.engine import TorchGraph
from onnxdfq.tuning.reconstruction import Reconstruction

pytestmark = pytest.mark.slow

NAMES = (
    "resnet20_cifar10jpeg",
    "resnet8_cifar10",
    "mobilenetv1_vww",
    "convmixer_cifar10",
    "vit_cifar10",
)


@pytest.mark.parametrize("settings", [{"bits": "w4a8"}, {"bits": "w4a4", "scheme": "free"}, {"bits": "w2a4"}])
@pytest.mark.parametrize("name", NAMES)
def test_engine_and_runtime_agree_within_one_step(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, str]
) -> None:
    monkeypatch.setattr("onnxdfq.tuning.tuning.EFFORTS", {"fast": Reconstruction(steps=10, rate=0.1)})
    result = onnxdfq.compress(
        shared_data / "models" / f"{name}.onnx", output=tmp_path / "q.onnx", method="noise", images=32, **settings
    )
    assert result.metrics["blocks_tuned"]
    assert result.images is not None
    model, pixels = ir.load(tmp_path / "q.onnx"), result.images.pixels
    with torch.no_grad():
        (engine,) = TorchGraph(model)(torch.from_numpy(pixels))
    last = model.graph.outputs[0].producer()
    assert last is not None
    assert last.op_type == "DequantizeLinear"
    assert last.inputs[1] is not None
    assert last.inputs[1].const_value is not None
    step = float(last.inputs[1].const_value.numpy())
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(tmp_path / "q.onnx", options)
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels})
        assert np.abs(engine.numpy() - found).max() <= 1.01 * step, level
