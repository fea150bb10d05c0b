"""Small networks of each kind: plain, basic block, bottleneck, dense block, inverted residual."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray


class Network:
    """Writes a graph in ONNX's syntax, layer by layer, with random weights."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, NDArray[Any]] = {}

    def conv(self, out: str, data: str, outputs: int, inputs: int, kernel: int = 3, group: int = 1) -> None:
        self.weights[f"w_{out}"] = self.random.normal(
            0, (2 / (inputs // group * kernel**2)) ** 0.5, (outputs, inputs // group, kernel, kernel)
        ).astype(np.float32)
        pads = [kernel // 2] * 4
        self.lines.append(f"{out} = Conv <pads = {pads}, group = {group}> ({data}, w_{out})")

    def norm(self, out: str, data: str, channels: int) -> None:
        draw = self.random.uniform
        self.weights |= {
            f"{out}_s": draw(0.5, 1.5, channels).astype(np.float32),
            f"{out}_b": draw(-0.5, 0.5, channels).astype(np.float32),
            f"{out}_m": draw(-0.5, 0.5, channels).astype(np.float32),
            f"{out}_v": draw(0.5, 2.0, channels).astype(np.float32),
        }
        self.lines.append(f"{out} = BatchNormalization ({data}, {out}_s, {out}_b, {out}_m, {out}_v)")

    def layer(self, out: str, data: str, outputs: int, inputs: int, kernel: int = 3, group: int = 1) -> None:
        """Conv c_<out>, BatchNormalization n_<out>, Relu <out>."""
        self.conv(f"c_{out}", data, outputs, inputs, kernel, group)
        self.norm(f"n_{out}", f"c_{out}", outputs)
        self.line(f"{out} = Relu (n_{out})")

    def line(self, text: str) -> None:
        self.lines.append(text)

    def head(self, data: str, channels: int) -> None:
        """Pooling and the classifier: y (N, 3)."""
        self.line(f"pool = GlobalAveragePool ({data})")
        self.line("flat = Flatten (pool)")
        self.weights["w_fc"] = self.random.normal(0, 0.5, (3, channels)).astype(np.float32)
        self.weights["b_fc"] = self.random.normal(0, 0.5, 3).astype(np.float32)
        self.line("y = Gemm <transB = 1> (flat, w_fc, b_fc)")


@pytest.fixture
def network(build: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    """network(kind), kind one of KINDS: nodes are called `<operator>_<output>`, the image is (N, 3, 8, 8)."""

    def make(kind: str) -> ir.Model:
        net = Network()
        KINDS[kind](net)
        return build("(float[N,3,8,8] x) => (float[N,3] y) { " + "\n".join(net.lines) + " }", **net.weights)

    return make


def plain(net: Network) -> None:
    net.layer("a", "x", 6, 3)
    net.layer("b", "a", 8, 6)
    net.line("p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)")
    net.layer("c", "p", 8, 8)
    net.layer("d", "c", 8, 8)
    net.head("d", 8)


def basic(net: Network) -> None:
    net.layer("stem", "x", 6, 3)
    net.layer("a", "stem", 6, 6)
    net.conv("c_b", "a", 6, 6)
    net.norm("n_b", "c_b", 6)
    net.line("sum = Add (n_b, stem)")
    net.line("b = Relu (sum)")
    net.head("b", 6)


def bottleneck(net: Network) -> None:
    net.layer("stem", "x", 8, 3)
    net.layer("a", "stem", 4, 8, kernel=1)
    net.layer("b", "a", 4, 4)
    net.conv("c_c", "b", 8, 4, kernel=1)
    net.norm("n_c", "c_c", 8)
    net.line("sum = Add (n_c, stem)")
    net.line("c = Relu (sum)")
    net.head("c", 8)


def dense(net: Network) -> None:
    """Two layers of a dense block: normalization and Relu stand before the convolutions, behind the Concat."""
    net.layer("stem", "x", 5, 3)
    features, width = "stem", 5
    for index in (1, 2):
        net.norm(f"n_in{index}", features, width)
        net.line(f"in{index} = Relu (n_in{index})")
        net.layer(f"mid{index}", f"in{index}", 6, width, kernel=1)
        net.conv(f"c_new{index}", f"mid{index}", 4, 6)
        net.line(f"all{index} = Concat <axis = 1> ({features}, c_new{index})")
        features, width = f"all{index}", width + 4
    net.norm("n_end", features, width)
    net.line("end = Relu (n_end)")
    net.head("end", width)


def inverted(net: Network) -> None:
    net.layer("stem", "x", 4, 3)
    net.layer("wide", "stem", 8, 4, kernel=1)
    net.layer("deep", "wide", 8, 8, group=8)
    net.conv("c_out", "deep", 4, 8, kernel=1)
    net.norm("n_out", "c_out", 4)
    net.line("sum = Add (n_out, stem)")
    net.head("sum", 4)


KINDS: dict[str, Callable[[Network], None]] = {
    "plain": plain,
    "basic": basic,
    "bottleneck": bottleneck,
    "dense": dense,
    "inverted": inverted,
}
