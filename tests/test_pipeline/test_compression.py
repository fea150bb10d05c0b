"""The pipeline from Python: integer kernels in ONNX Runtime, agreement with the engine, models in memory."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import onnxdfq
from onnxdfq.engine import TorchGraph

from ..slow import all_but, slow

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"


def conv_bn(cin: int, cout: int, size: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]


class Bottleneck(nn.Module):
    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_bn(cin, width, 1),
            nn.ReLU(),
            *conv_bn(width, width, 3, stride),
            nn.ReLU(),
            *conv_bn(width, 4 * width, 1),
        )
        self.shortcut = (
            nn.Sequential(*conv_bn(cin, 4 * width, 1, stride)) if stride != 1 or cin != 4 * width else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.residual = cin == cout and stride == 1
        self.body = nn.Sequential(
            *conv_bn(cin, 4 * cin, 1), nn.ReLU6(), *conv_bn(4 * cin, 4 * cin, 3, stride, 4 * cin), nn.ReLU6(),
            *conv_bn(4 * cin, cout, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


NETWORKS = {
    "resnet": lambda: nn.Sequential(
        *conv_bn(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Bottleneck(16, 8, 1), Bottleneck(32, 8, 1),
        Bottleneck(32, 16, 2), *head(64),
    ),
    "vgg": lambda: nn.Sequential(
        *conv_bn(3, 16), nn.ReLU(), nn.MaxPool2d(2), *conv_bn(16, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10),
    ),
    "mobilenet": lambda: nn.Sequential(
        *conv_bn(3, 8, 3, 2), nn.ReLU6(), InvertedResidual(8, 8, 1), InvertedResidual(8, 16, 2),
        InvertedResidual(16, 16, 1), *conv_bn(16, 64, 1), nn.ReLU6(), *head(64),
    ),
}  # fmt: skip


def trained_like(network: nn.Module) -> nn.Module:
    """BatchNormalization with statistics that are not those of a fresh layer."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for tensor, low in (
                (layer.running_mean, -1.0),
                (layer.bias, -1.0),
                (layer.running_var, 0.5),
                (layer.weight, 0.5),
            ):
                tensor.data.uniform_(low, low + 1.5, generator=generator)
    return network.eval()


def optimised_operators(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of the file, operator by operator."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("name", all_but(NETWORKS, list(NETWORKS)[:1]))
@pytest.mark.parametrize("scheme", ["power-of-two", slow("free")])
def test_every_conv_and_gemm_becomes_integer(name: str, scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / f"{name}.onnx"
    onnxdfq.export(trained_like(NETWORKS[name]()), torch.zeros(1, 3, 32, 32), path)
    wanted = Counter(node.op_type for node in onnx.load(path).graph.node)
    result = onnxdfq.compress(path, method="noise", images=16, scheme=scheme)
    assert result.path is not None
    found = optimised_operators(result.path, tmp_path)
    assert wanted["Conv"] > 0 and wanted["Gemm"] > 0
    assert (found["QLinearConv"], found["QGemm"]) == (wanted["Conv"], wanted["Gemm"])
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Relu", "Clip", "Add"} & {
        name for name in found if name != "Clip"
    }


@pytest.mark.parametrize("name", [slow("resnet20_cifar10"), "resnet8_cifar10", slow("mobilenetv1_vww")])
def test_every_conv_and_gemm_of_a_real_network_becomes_integer(shared_data: Path, name: str, tmp_path: Path) -> None:
    path = shared_data / "models" / f"{name}.onnx"
    wanted = Counter(node.op_type for node in onnx.load(path).graph.node)
    result = onnxdfq.compress(path, method="noise", images=16, output=tmp_path / "q.onnx")
    found = optimised_operators(tmp_path / "q.onnx", tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (wanted["Conv"], wanted["Gemm"])
    assert found["Conv"] == found["Gemm"] == 0
    assert result.notes == ()


@pytest.mark.parametrize(
    ("bits", "scheme"),
    [("w8a8", "power-of-two"), slow(("w8a8", "free")), slow(("w4a4", "power-of-two")), slow(("w4a4", "free"))],
)
def test_the_engine_and_onnxruntime_agree(bits: str, scheme: str, tmp_path: Path) -> None:
    """Biases lie on the accumulator's grid, so even the integer kernels compute what the engine computes; one step is
    left to the sums of free scales, and to processors that add in another order."""
    data, output = DIGITS / "digits_test.npz", tmp_path / "q.onnx"
    onnxdfq.compress(DIGITS / "digits.onnx", calibration=data, bits=bits, scheme=scheme, output=output)
    model = ir.load(output)
    x = np.random.default_rng(0).normal(size=(256, 1, 8, 8)).astype("f4")
    (found,) = TorchGraph(model)(torch.from_numpy(x))
    dequantize = model.graph.outputs[0].producer()
    assert dequantize is not None and dequantize.inputs[1] is not None and dequantize.inputs[1].const_value is not None
    step = float(dequantize.inputs[1].const_value.numpy())
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(output, options, providers=["CPUExecutionProvider"])
        (expected,) = session.run(None, {str(model.graph.inputs[0].name): x})
        difference = np.abs(found.numpy() - expected) / step
        assert difference.max() <= 1.001 and np.mean(difference > 0.5) <= 0.01


def test_a_model_in_memory_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proto = onnx.load(DIGITS / "digits.onnx")
    before = proto.SerializeToString()
    result = onnxdfq.compress(proto, method="noise", images=16)
    assert result.path is None and list(tmp_path.iterdir()) == []
    assert proto.SerializeToString() == before
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


def test_names_provenance_and_shapes_for_netron(tmp_path: Path) -> None:
    onnxdfq.compress(DIGITS / "digits.onnx", method="noise", images=16, output=tmp_path / "q.onnx", seed=5)
    before, after = onnx.load(DIGITS / "digits.onnx"), onnx.load(tmp_path / "q.onnx")
    assert [v.name for v in after.graph.input] == [v.name for v in before.graph.input]
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    convolutions = [{node.name for node in m.graph.node if node.op_type == "Conv"} for m in (before, after)]
    assert convolutions[0] == convolutions[1] and "" not in convolutions[1]
    metadata = {entry.key: entry.value for entry in after.metadata_props}
    assert (metadata["dfq.seed"], metadata["dfq.bits"], metadata["dfq.method"]) == ("5", "w8a8", "noise")
    assert len(metadata["dfq.source"]) == 16 and "dfq.version" in metadata
    known = {info.name for info in after.graph.value_info}
    made = {name for node in after.graph.node for name in node.output} - {v.name for v in after.graph.output}
    assert made <= known, "every edge carries its shape"
    quantize = [node for node in after.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all({entry.key for entry in node.metadata_props} >= {"dfq.bits", "dfq.threshold"} for node in quantize)
    onnx.shape_inference.infer_shapes(after, strict_mode=True, check_type=True)


def test_dgh_on_the_sample_keeps_its_accuracy(tmp_path: Path) -> None:
    result = onnxdfq.compress(
        DIGITS / "digits.onnx", output=tmp_path / "q.onnx", evaluate=DIGITS / "digits_test.npz", images=128, steps=60
    )
    assert result.images.method == "dgh"
    top1, top1_float = result.metrics["top1"], result.metrics["top1_float"]
    assert top1 is not None and top1_float is not None and top1 >= top1_float - 0.01


def test_every_exported_name_is_there_and_documented() -> None:
    for name in onnxdfq.__all__:
        assert getattr(onnxdfq, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = onnxdfq.quantise
