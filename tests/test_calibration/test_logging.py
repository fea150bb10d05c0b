"""What a debugging user is told: thresholds, and which channels got coarser scales for what."""

import logging
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.targets import load_target

PIXELS = np.random.default_rng(0).uniform(0, 1, size=(16, 2, 4, 4)).astype("f4")


def test_decisions_are_told_at_debug_level(build: Callable[..., ir.Model], caplog: pytest.LogCaptureFixture) -> None:
    weight = np.array([[0.5, -0.5], [1e-9, 1e-9]], "f4")[:, :, None, None]  # the second channel is all bias
    model = build(
        "(float[N,2,4,4] x) => (float[N,2,4,4] y) { h = Conv <kernel_shape=[1,1]> (x, w, b) y = Relu (h) }",
        w=weight,
        b=np.array([0.0, 1000.0], "f4"),
    )
    target = load_target("tflite")
    Calibration().plan(model, PIXELS, target)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="onnxdfq"):
        Calibration().plan(model, PIXELS, target)
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("x: values from ") and "8 bits, threshold 1, " in line for line in lines)
    assert "w: coarser scales in channels [1] to make room for the bias of Conv_h" in lines
