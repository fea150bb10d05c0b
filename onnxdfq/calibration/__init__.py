"""HPTQ: thresholds, zero points and biases, decided from statistics of a network's values."""

from onnxdfq.calibration.calibration import Calibration

__all__ = ["Calibration"]
