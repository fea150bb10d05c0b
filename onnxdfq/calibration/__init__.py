"""Thresholds, zero points and biases decided from what a network shows of its values (HPTQ)."""

from onnxdfq.calibration.calibration import Calibration

__all__ = ["Calibration"]
