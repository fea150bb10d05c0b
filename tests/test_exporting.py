"""torch to ONNX: every BatchNormalization survives, and onnxruntime computes what torch does."""

import builtins
import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from onnxdfq import exporting
from onnxdfq.errors import DataError, DfqError, OutputError
from onnxdfq.exporting import export
from onnxdfq.model_file import load_model, main_input

from .slow import slow

pytest.importorskip("onnxscript", reason="exporting needs the extra `export`")


class Net(nn.Module):
    """A BatchNormalization after each kind of layer that has one, before a convolution, and a Dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.conv_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.up_norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout()
        self.head = nn.Linear(6, 5)
        self.head_norm = nn.BatchNorm1d(5)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d):
                nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.conv_norm(self.conv(self.first(image))))
        x = x + self.depthwise_norm(self.depthwise(x))
        x = self.up_norm(self.up(x)).mean((2, 3)).flatten(1)
        return self.head_norm(self.head(self.drop(x)))  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.conv(image))
        return x.mean((2, 3)), x.amax((2, 3)) + shift


def run(path: Path, *arrays: Tensor) -> list[np.ndarray[Any, Any]]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {entry.name: array.numpy() for entry, array in zip(session.get_inputs(), arrays, strict=True)}
    return list(session.run(None, feeds))


@pytest.mark.parametrize("dynamo", [False, slow(True)])
@pytest.mark.parametrize("batch", [slow(1), 4])
def test_batch_norm_survives(tmp_path: Path, dynamo: bool, batch: int) -> None:
    torch.manual_seed(0)
    net, path = Net(), tmp_path / "net.onnx"
    export(net, torch.randn(batch, 3, 8, 8), path, dynamo=dynamo, normalize="cifar10")
    proto = onnx.load(path)
    operators = collections.Counter(node.op_type for node in proto.graph.node)
    assert operators["BatchNormalization"] == 5
    assert not operators["Dropout"]
    assert {entry.key: entry.value for entry in proto.metadata_props}["dfq.norm"] == "cifar10"
    assert proto.graph.input[0].name == "image"
    assert net.training
    assert net.drop.training
    net.eval()
    for size in (1, 3):
        x = torch.randn(size, 3, 8, 8)
        with torch.no_grad():
            expected = net(x).numpy()
        np.testing.assert_allclose(run(path, x)[0], expected, rtol=1e-4, atol=1e-5)
    loaded = load_model(path)
    assert main_input(loaded).shape == (None, 3, 8, 8)
    assert [node.op_type for node in loaded.graph].count("BatchNormalization") == 5


@pytest.mark.parametrize("dynamo", [False, slow(True)])
def test_several_inputs_and_outputs(tmp_path: Path, dynamo: bool) -> None:
    torch.manual_seed(0)
    net, path = Pair().eval(), tmp_path / "pair.onnx"
    export(net, (torch.randn(2, 3, 6, 6), torch.randn(2, 4)), path, dynamo=dynamo)
    proto = onnx.load(path)
    assert [value.name for value in proto.graph.input] == ["image", "shift"]
    assert [value.name for value in proto.graph.output] == ["output_0", "output_1"]
    assert not proto.metadata_props
    assert not net.training
    image, shift = torch.randn(3, 3, 6, 6), torch.randn(3, 4)
    with torch.no_grad():
        expected = net(image, shift)
    for found, wanted in zip(run(path, image, shift), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_bad_arguments_fail_before_the_export(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    example = torch.randn(1, 3, 8, 8)
    with pytest.raises(OutputError, match="exists"):
        export(Net(), example, path)
    with pytest.raises(DataError, match="imgnet"):
        export(Net(), example, tmp_path / "other.onnx", normalize="imgnet")
    assert path.read_text() == "mine"


def test_the_mode_comes_back_when_the_export_fails(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            raise RuntimeError("on purpose")

    net = Broken()
    with pytest.raises(RuntimeError, match="on purpose"):
        export(net, torch.randn(1, 3, 8, 8), tmp_path / "net.onnx")
    assert net.training


class Branch(nn.Module):
    """The newer exporter takes no branch that depends on data."""

    def forward(self, image: Tensor) -> Tensor:
        return image * 2 if image.sum() > 0 else image


class Pooled(nn.Module):
    """The TorchScript exporter takes no pooling whose windows differ in size."""

    def forward(self, image: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(image, (3, 3))


@pytest.mark.parametrize(
    ("net", "dynamo", "said"),
    [
        (
            Branch(),
            True,
            r"newer exporter failed \(.*data-dependent.*\); so torch's TorchScript exporter wrote .*net.onnx",
        ),
        (
            Pooled(),
            False,
            r"TorchScript exporter failed \(.*not factor.*\); so torch's newer exporter wrote .*net.onnx",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_other_exporter_is_tried(tmp_path: Path, net: nn.Module, dynamo: bool, said: str) -> None:
    example, path = torch.rand(2, 3, 8, 8), tmp_path / "net.onnx"
    with pytest.warns(UserWarning, match=said):
        export(net, example, path, dynamo=dynamo)
    np.testing.assert_allclose(run(path, example)[0], net(example).numpy(), rtol=1e-4, atol=1e-6)


def invalid(*_: Any) -> ir.Model:
    """Valid to the checker; ONNX Runtime finds that the shapes do not fit when it runs."""
    value, shape = ir.val("image", ir.DataType.FLOAT, ["N", 3, 8, 8]), ir.val("s", const_value=ir.tensor([5, 5]))
    shape.const_value.name = "s"  # type: ignore[union-attr]
    node = ir.node("Reshape", [value, shape])
    node.outputs[0].name, node.outputs[0].dtype = "output", ir.DataType.FLOAT
    graph = ir.Graph([value], node.outputs, nodes=[node], initializers=[shape], opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def raising(*_: Any) -> ir.Model:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise RuntimeError("\x1b[96mStep 1 of 3\x1b[0m") from error


@pytest.mark.slow
@pytest.mark.parametrize(("first", "reason"), [(invalid, "Reshape"), slow((raising, "KeyError: 'the cause'"))])
def test_a_file_that_does_not_run_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, reason: str
) -> None:
    monkeypatch.setattr(exporting, "_with_torchscript", first)
    net, path = Net(), tmp_path / "net.onnx"
    with pytest.warns(UserWarning, match=rf"TorchScript exporter failed \(.*{reason}.*so torch's newer exporter wrote"):
        export(net, torch.randn(2, 3, 8, 8), path)
    assert [node.op_type for node in load_model(path).graph].count("BatchNormalization") == 5
    monkeypatch.setattr(exporting, "_with_dynamo", raising)
    with pytest.raises(
        OutputError, match=rf"Neither .*TorchScript exporter failed \(.*{reason}.*newer .*KeyError"
    ) as e:
        export(net, torch.randn(2, 3, 8, 8), tmp_path / "other.onnx")
    assert e.value.exit_code == 1 and "\n" not in str(e.value) and "\x1b" not in str(e.value)
    assert net.training and not (tmp_path / "other.onnx").exists()


def test_without_onnxscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_onnxscript(name: str, *rest: Any) -> Any:
        if name.startswith("onnxscript"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_onnxscript)
    with pytest.raises(DfqError, match=r"needs onnxscript: pip install 'onnxdfq\[export\]'"):
        export(Net(), torch.randn(1, 3, 8, 8), tmp_path / "net.onnx")
