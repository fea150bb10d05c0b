"""Models in ONNX Runtime: accuracy, agreement, and whether the processor computes what a file says."""

from onnxdfq.evaluation.evaluation import Evaluation, Session, evaluate, load_evaluation_data

__all__ = ["Evaluation", "Session", "evaluate", "load_evaluation_data"]
