"""Latency of two models, one beside the other."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxdfq.evaluation import Session
from onnxdfq.evaluation.latency import latencies


def test_a_wide_layer_takes_longer(build: Callable[..., ir.Model], tmp_path: Path) -> None:
    def session(width: int) -> Session:
        model = build(
            "(float[N,8,32,32] x) => (float[N,2,32,32] y) { a = Conv <pads=[1,1,1,1]> (x, w) y = Conv (a, u) }",
            w=np.ones((width, 8, 3, 3), np.float32), u=np.ones((2, width, 1, 1), np.float32),
        )  # fmt: skip
        return Session(tmp_path / "m.onnx", model)

    samples = np.zeros((3, 8, 32, 32), np.float32)
    first, second = latencies(session(256), session(8), samples)
    assert 0 < second < first / 2
