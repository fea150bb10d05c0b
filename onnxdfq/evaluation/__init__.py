"""Models in ONNX Runtime: accuracy, agreement, and whether the processor computes what a file says."""

from onnxdfq.evaluation.evaluation import Evaluation, evaluate, evaluate_all, load_evaluation_data
from onnxdfq.evaluation.session import Session

__all__ = ["Evaluation", "Session", "evaluate", "evaluate_all", "load_evaluation_data"]
