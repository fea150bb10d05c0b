"""A report of a network of 200 layers: seconds after the run, and bytes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.report import assembling

from ..graphs import Network

pytestmark = pytest.mark.benchmark

BLOCKS, WIDTHS, SIDE = 33, (16, 32, 64), 32  # of two convolutions each in every stage: 199 with the first, and a Gemm
BRANCH = 0.1  # by which the last normalization of a block scales: sums of a hundred blocks stay small
MOST_SECONDS, MOST_BYTES = 5.0, 2_000_000


def deep_network() -> ir.Model:
    """A ResNet for 32×32 pixels."""
    net = Network()

    def layer(x: str, inside: int, outside: int, stride: int = 1) -> str:
        return net.batch_norm(net.conv(x, inside, outside, strides=[stride, stride]), outside)

    x, inside = net.node("Relu", layer("image", 3, WIDTHS[0])), WIDTHS[0]
    for width in WIDTHS:
        for block in range(BLOCKS):
            stride = 2 if block == 0 and width != WIDTHS[0] else 1
            branch = layer(net.node("Relu", layer(x, inside, width, stride)), width, width)
            if inside == width:
                x = net.node("Add", x, net.node("Mul", branch, net.constant(np.float32(BRANCH).reshape(()))))
            else:
                x = branch
            x, inside = net.node("Relu", x), width
    x = net.gemm(net.node("Flatten", net.node("GlobalAveragePool", x)), inside, 10)
    return net.model({"image": ["batch", 3, SIDE, SIDE]}, {x: ["batch", 10]})


def test_a_report_of_200_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, took = assembling.tell_of_compression, []

    def timed(*arguments: Any) -> None:
        started = time.perf_counter()
        run(*arguments)
        took.append(time.perf_counter() - started)

    monkeypatch.setattr(assembling, "tell_of_compression", timed)
    model, report = deep_network(), tmp_path / "report.html"
    layers = sum(node.op_type in ("Conv", "Gemm") for node in model.graph)
    ir.save(model, tmp_path / "deep.onnx")
    onnxdfq.compress(
        tmp_path / "deep.onnx",
        output=tmp_path / "q.onnx",
        report=report,
        method="dead-leaves",
        images=32,
        normalize="imagenet",
    )
    size = report.stat().st_size
    print(f"\n{layers} layers: a report of {size:,} bytes in {took[0]:.1f} s after the run")
    assert layers == 200
    assert size < MOST_BYTES
    assert took[0] <= MOST_SECONDS
