"""The engine against a hand-written torch module: forward and backward to the input, with every BN input tapped."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxdfq.engine import TorchGraph

pytestmark = pytest.mark.benchmark

PAIRS = 25
BATCH = 32


class Block(nn.Module):
    """A basic residual block whose shortcut subsamples and pads channels (He et al., option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.grow = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grow // 2, self.grow // 2))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """ResNet-20 for 32 x 32 images, as in the ONNX file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * 3 + [32] * 3 + [64] * 3
        before = [16, *widths[:-1]]
        self.blocks = nn.Sequential(*(Block(i, o, 1 + (i != o)) for i, o in zip(before, widths, strict=True)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def _native(model: ir.Model) -> tuple[ResNet20, list[Tensor]]:
    """The module with the weights of the file, and the list into which its hooks put the inputs of all BNs."""
    native = ResNet20().eval().requires_grad_(False)
    own = [module for module in native.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    nodes = [node for node in model.graph if node.op_type in ("Conv", "BatchNormalization", "Gemm")]
    for module, node in zip(own, nodes, strict=True):
        tensors = [value.const_value for value in node.inputs if value is not None]
        arrays = [torch.from_numpy(tensor.numpy().copy()) for tensor in tensors if tensor is not None]
        names = ["weight", "bias", "running_mean", "running_var"][: len(arrays)]
        for name, array in zip(names, arrays, strict=True):
            getattr(module, name).data.copy_(array)
    taps: list[Tensor] = []
    for module in native.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: taps.append(inputs[0]))
    return native, taps


def _loss(taps: list[Tensor], logits: Tensor) -> Tensor:
    return torch.stack([tap.mean() for tap in taps]).sum() + logits.mean()


def _seconds(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    start = time.perf_counter()
    torch.autograd.grad(run(x), x)
    return time.perf_counter() - start


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_as_fast_as_a_native_module(
    shared_data: Path, layout: torch.memory_format, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ir.load(shared_data / "models" / "resnet20_cifar10.onnx")
    taps = [str(node.inputs[0].name) for node in model.graph if node.op_type == "BatchNormalization" and node.inputs[0]]
    engine = TorchGraph(model, outputs=[*taps, str(model.graph.outputs[0].name)])
    native, hooked = _native(model)

    def run_engine(x: Tensor) -> Tensor:
        *values, logits = engine(x)
        return _loss(values, logits)

    def run_native(x: Tensor) -> Tensor:
        hooked.clear()
        logits = native(x)
        return _loss(hooked, logits)

    x = torch.randn(BATCH, 3, 32, 32).to(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        tolerance = 1e-4 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(run_engine(x), run_native(x), rtol=tolerance, atol=tolerance)
        for _ in range(3):
            _seconds(run_engine, x), _seconds(run_native, x)
        ratios = [_seconds(run_engine, x) / _seconds(run_native, x) for _ in range(PAIRS)]
    ratio = statistics.median(ratios)
    with capsys.disabled():
        print(f"\nengine / native, {dtype}, {layout}: {ratio:.3f}")
    assert ratio <= 1.1
