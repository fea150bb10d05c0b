"""Models in ONNX Runtime: accuracy, agreement, and whether the processor computes what a file says."""

from onnxdfq.evaluation.evaluation import Evaluation, evaluate, evaluate_all, load_evaluation_data
from onnxdfq.evaluation.runtimes import RuntimeDifference, compare_runtimes
from onnxdfq.evaluation.session import Session

__all__ = [
    "Evaluation",
    "RuntimeDifference",
    "Session",
    "compare_runtimes",
    "evaluate",
    "evaluate_all",
    "load_evaluation_data",
]
