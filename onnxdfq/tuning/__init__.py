"""Weights, steps and biases trained on the QDQ graph: a plan in, a better plan out (AdaRound, BRECQ)."""

from onnxdfq.tuning.tuning import Tuning, tuning_for

__all__ = ["Tuning", "tuning_for"]
