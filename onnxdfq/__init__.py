"""Data-free quantization of ONNX models: `compress` is the door.

import onnxdfq
result = onnxdfq.compress("model.onnx", method="dgh", bits="w8a8", normalize="imagenet")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import passes

if getattr(passes, "PART_OF", None) != "onnxdfq":
    raise ImportError(
        f"onnxdfq's own package `passes` is hidden by {getattr(passes, '__file__', passes)}, which Python finds first; "
        "rename that folder or file, or start from another folder."
    )

if TYPE_CHECKING:
    from onnxdfq.errors import DfqError
    from onnxdfq.evaluation.evaluation import Evaluation
    from onnxdfq.exporting import export
    from onnxdfq.methods import Images
    from onnxdfq.pipeline.compression import compress, synthesize
    from onnxdfq.pipeline.result import Result
    from onnxdfq.recipe.bits import Bits
    from onnxdfq.recipe.recipe import Recipe

# Imported on first use: `onnxdfq --help` must not wait for torch.
_HOMES = {
    "Bits": "recipe.bits",
    "DfqError": "errors",
    "Evaluation": "evaluation.evaluation",
    "Images": "images.images",
    "Recipe": "recipe.recipe",
    "Result": "pipeline.result",
    "compress": "pipeline.compression",
    "export": "exporting",
    "synthesize": "pipeline.compression",
}

__all__ = ["Bits", "DfqError", "Evaluation", "Images", "Recipe", "Result", "compress", "export", "synthesize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxdfq' has no attribute {name!r}")
    return getattr(import_module(f"onnxdfq.{_HOMES[name]}"), name)
