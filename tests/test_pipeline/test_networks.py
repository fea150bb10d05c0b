"""`compress` on small networks of many families: integer kernels, valid files, engine and runtime agree."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import onnxdfq

from ..slow import all_but, slow
from .conftest import compressed


def layer(
    cin: int, cout: int, size: int = 3, stride: int = 1, groups: int = 1, act: type | None = nn.ReLU
) -> nn.Module:
    convolution = nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(cout), *([act()] if act else []))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, 10)]


class Inverted(nn.Module):
    """MobileNetV3 and EfficientNet: expand, depthwise, squeeze and excite, project."""

    def __init__(self, cin: int, cout: int, stride: int, act: type, gate: type) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(cin, 2 * cin, 1, act=act), layer(2 * cin, 2 * cin, 5, stride, 2 * cin, act=act))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(2 * cin, 4, 1), nn.ReLU(), nn.Conv2d(4, 2 * cin, 1), gate()
        )
        self.project = layer(2 * cin, cout, 1, act=None)
        self.residual = cin == cout and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self.project(y * self.gate(y))
        return x + y if self.residual else y


class Dense(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Sequential(layer(8, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(torch.relu(self.norm(x)))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(layer(8, 8, 1), layer(8, 8, 3, 1, 8, None), layer(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.body(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            layer(16, 8, 1), nn.Sequential(layer(16, 4, 1), layer(4, 8, 5)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), layer(16, 8, 1)), nn.MaxPool2d(3, 1, 1),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = layer(3, 8), layer(8, 8, 3, 2), layer(8, 16, 3, 2), layer(16, 16, 3, 2)
        self.up, self.norm = nn.ConvTranspose2d(16, 16, 2, 2, groups=4), nn.BatchNorm2d(16)
        self.e, self.f, self.g, self.last = layer(32, 8), layer(16, 8), layer(16, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        c = self.c(b)
        y = self.e(torch.cat([torch.relu(self.norm(self.up(self.d(c)))), c], 1))
        y = self.f(torch.cat([functional.interpolate(y, scale_factor=2.0, mode="nearest"), b], 1))
        y = self.g(torch.cat([functional.interpolate(y, scale_factor=2.0, mode="bilinear"), a], 1))
        return self.last(y)


class Detector(nn.Module):
    """Outputs (N, boxes, classes), (N, boxes, 4) and (N, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = layer(3, 16, 3, 4, act=nn.ReLU6), layer(16, 16, 3, 2, act=nn.ReLU6)
        self.scores = nn.ModuleList([nn.Conv2d(16, 6, 3, padding=1) for _ in range(2)])
        self.boxes = nn.ModuleList([nn.Conv2d(16, 8, 3, padding=1) for _ in range(2)])
        self.mask = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.a(x)
        b = self.b(a)

        def rows(values: Sequence[Tensor], size: int) -> Tensor:
            return torch.cat([v.permute(0, 2, 3, 1).reshape(v.shape[0], -1, size) for v in values], 1)

        scores = [convolution(v) for convolution, v in zip(self.scores, (a, b), strict=True)]
        boxes = [convolution(v) for convolution, v in zip(self.boxes, (a, b), strict=True)]
        return rows(scores, 3).sigmoid(), rows(boxes, 4), self.mask(a)


class Taps(nn.Module):
    """Outputs that are read inside: of a Relu, of a Conv, of a Clip; one Conv is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = layer(3, 8), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a = self.a(x)
        b = self.b(a)
        c = functional.hardtanh(self.c(self.b(torch.relu(b))), 0.0, 6.0)
        return a, b, c, self.head(c)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        return x + self.mlp(x)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.position = nn.Conv2d(3, 16, 8, 8), nn.Parameter(0.1 * torch.randn(1, 16, 16))
        self.body, self.head = Attention(), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.patches(x).flatten(2).transpose(1, 2) + self.position).mean(1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Sequential(layer(3, 8), *head(8)), nn.Linear(4, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x) + self.other(y)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "efficientnet": (lambda: nn.Sequential(
        layer(3, 8, 3, 2, act=nn.SiLU), Inverted(8, 8, 1, nn.SiLU, nn.Sigmoid), Inverted(8, 12, 2, nn.SiLU, nn.Sigmoid),
        *head(12)), (3, 32, 32)),
    "mobilenetv3": (lambda: nn.Sequential(
        layer(3, 8, 3, 2, act=nn.Hardswish), Inverted(8, 8, 1, nn.ReLU6, nn.Hardsigmoid),
        Inverted(8, 12, 2, nn.Hardswish, nn.Hardsigmoid), *head(12)[:2], nn.Linear(12, 16), nn.Hardswish(),
        nn.Linear(16, 10)), (3, 32, 32)),
    "densenet": (lambda: nn.Sequential(
        layer(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), Dense(8), Dense(16), nn.AvgPool2d(2), nn.BatchNorm2d(24), nn.ReLU(),
        *head(24)), (3, 32, 32)),
    "preactivation": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), PreActivation(), PreActivation(), nn.BatchNorm2d(8), nn.ReLU(), *head(8)),
        (3, 16, 16)),
    "shufflenet": (lambda: nn.Sequential(layer(3, 16, 3, 2), Shuffle(), Shuffle(), *head(16)), (3, 32, 32)),
    "inception": (lambda: nn.Sequential(layer(3, 16, 3, 2), Inception(), *head(40)), (3, 32, 32)),
    "regnet_5_channels_not_square": (lambda: nn.Sequential(layer(5, 16, 3, 2), layer(16, 16, 3, 1, 4), *head(16)),
        (5, 24, 40)),
    "grey": (lambda: nn.Sequential(layer(1, 8), layer(8, 8, 3, 2), *head(8)), (1, 28, 28)),
    "unet": (UNet, (3, 32, 32)),
    "detector": (Detector, (3, 32, 32)),
    "taps": (Taps, (3, 16, 16)),
    "vit": (ViT, (3, 32, 32)),
    "two_inputs": (TwoInputs, (3, 16, 16)),
    "linear_norm": (lambda: nn.Sequential(
        layer(3, 8, 3, 2), nn.Flatten(), nn.Linear(512, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)),
        (3, 16, 16)),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """A network of `NETWORKS` as a file, with statistics as if it had been trained."""
    folder = tmp_path_factory.mktemp("networks")

    def export(name: str, dynamo: bool) -> Path:
        path = folder / f"{name} {dynamo}.onnx"  # a space in the name on purpose
        if not path.exists():
            torch.manual_seed(0)
            build, shape = NETWORKS[name]
            network = build()
            for part in network.modules():
                if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                    nn.init.uniform_(part.weight, 0.5, 1.5)
                    nn.init.uniform_(part.bias, -0.3, 0.3)
                    part.momentum = None
            example = (torch.randn(8, *shape), *([torch.zeros(8, 4)] if name == "two_inputs" else []))
            network.train()(*example)
            onnxdfq.export(network, example, path, dynamo=dynamo)
        return path

    return export


NORMALIZED_FIRST = {"densenet": 3, "preactivation": 3}  # normalizations before a Relu, which become Conv themselves


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [
        *all_but(((name, False) for name in NETWORKS), [("taps", False)]),
        *all_but([("mobilenetv3", True), ("detector", True), ("vit", True)], []),
    ],
)
def test_every_conv_and_gemm_becomes_integer(
    name: str, dynamo: bool, exported: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    source = exported(name, dynamo)
    found = compressed(source, tmp_path)
    wanted = Counter(node.op_type for node in onnx.load(source).graph.node)
    assert found["QLinearConv"] - NORMALIZED_FIRST.get(name, 0) == wanted["Conv"] > 0
    assert "BatchNormalization" not in found
    assert found["QGemm"] >= wanted["Gemm"]
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"} & set(found)


@pytest.mark.parametrize("name", all_but(["efficientnet", "mobilenetv3", "detector", "taps", "unet"], ["taps"]))
@pytest.mark.parametrize(
    "settings",
    [
        {"bits": "w4a4"},
        slow({"bits": "w8a16"}),
        slow({"bits": "w8a32"}),
        {"scheme": "free"},
        slow({"shift_negative": True}),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_other_settings(
    name: str, settings: dict[str, object], exported: Callable[[str, bool], Path], tmp_path: Path
) -> None:
    """Values that lie between two steps may fall to either side: a few of 65,536, or one to two through free scales."""
    steps = {"w8a16": 8.0}.get(str(settings.get("bits")), 2.01)
    source = exported(name, False)
    found = compressed(source, tmp_path, steps=steps, sqnr=1.0, **settings)
    if settings.get("bits") not in ("w8a16", "w8a32"):
        assert found["QLinearConv"] == sum(node.op_type == "Conv" for node in onnx.load(source).graph.node)
