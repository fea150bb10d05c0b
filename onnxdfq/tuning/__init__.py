"""Roundings of weights, scales of activations and biases, trained on the QDQ graph (AdaRound, BRECQ)."""

from onnxdfq.tuning.tuning import Tuning, tuning_for

__all__ = ["Tuning", "tuning_for"]
