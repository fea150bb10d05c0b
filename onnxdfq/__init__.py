"""Data-free quantization of ONNX models: `compress` is the door.

import onnxdfq
result = onnxdfq.compress("model.onnx", bits="w8a8", normalize="imagenet")
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import passes

if getattr(passes, "PART_OF", None) != "onnxdfq":
    raise ImportError(
        f"onnxdfq's own package `passes` is hidden by {getattr(passes, '__file__', passes)}, which Python finds first; "
        "rename that folder or file, or start from another folder."
    )

# ONNX Runtime's own builds carry a client of its makers' telemetry, which starts when they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from onnxdfq.api import compare_runtimes, compress, distill, evaluate, load, merge_images, prune, synthesize
    from onnxdfq.errors import DfqError, InputError, OutputError
    from onnxdfq.evaluation import Evaluation, RuntimeDifference
    from onnxdfq.exporting import export
    from onnxdfq.images.images import Images
    from onnxdfq.methods import (
        Dafl,
        DeadLeaves,
        DeepInversion,
        Dfmpc,
        Dfq,
        Dgh,
        Edfq,
        Gdfq,
        Genie,
        Method,
        Mixmix,
        Noise,
        Psaq,
        ZeroQ,
    )
    from onnxdfq.pipeline.result import Metrics, Result, TargetResult
    from onnxdfq.recipe.bits import Bits
    from onnxdfq.recipe.recipe import Recipe
    from onnxdfq.recipe.zoo import Member
    from onnxdfq.report.cards import image_card
    from onnxdfq.report.diagnosing import diagnose
    from onnxdfq.report.diagnosis.result import Diagnosis
    from onnxdfq.report.inspection import inspect
    from onnxdfq.report.linting import lint
    from onnxdfq.targets import load_target

# Imported on first use: `onnxdfq --help` must not wait for torch.
_HOMES = {
    "Bits": "recipe.bits",
    "Dafl": "methods",
    "DeadLeaves": "methods",
    "DeepInversion": "methods",
    "Dfmpc": "methods",
    "Dfq": "methods",
    "DfqError": "errors",
    "Dgh": "methods",
    "Diagnosis": "report.diagnosis.result",
    "Edfq": "methods",
    "Gdfq": "methods",
    "Genie": "methods",
    "Evaluation": "evaluation.evaluation",
    "Images": "images.images",
    "InputError": "errors",
    "Member": "recipe.zoo",
    "Method": "methods",
    "Metrics": "pipeline.result",
    "Mixmix": "methods",
    "Noise": "methods",
    "OutputError": "errors",
    "Psaq": "methods",
    "Recipe": "recipe.recipe",
    "Result": "pipeline.result",
    "RuntimeDifference": "evaluation.runtimes",
    "TargetResult": "pipeline.result",
    "ZeroQ": "methods",
    "compare_runtimes": "api",
    "compress": "api",
    "diagnose": "report.diagnosing",
    "distill": "api",
    "evaluate": "api",
    "export": "exporting",
    "image_card": "report.cards",
    "inspect": "report.inspection",
    "lint": "report.linting",
    "load": "api",
    "load_target": "targets",
    "merge_images": "api",
    "prune": "api",
    "synthesize": "api",
}

__all__ = [
    "Bits",
    "Dafl",
    "DeadLeaves",
    "DeepInversion",
    "Dfmpc",
    "Dfq",
    "DfqError",
    "Dgh",
    "Diagnosis",
    "Edfq",
    "Evaluation",
    "Gdfq",
    "Genie",
    "Images",
    "InputError",
    "Member",
    "Method",
    "Metrics",
    "Mixmix",
    "Noise",
    "OutputError",
    "Psaq",
    "Recipe",
    "Result",
    "RuntimeDifference",
    "TargetResult",
    "ZeroQ",
    "compare_runtimes",
    "compress",
    "diagnose",
    "distill",
    "evaluate",
    "export",
    "image_card",
    "inspect",
    "lint",
    "load",
    "load_target",
    "merge_images",
    "prune",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found  # a module of the same name, imported later, must not take its place
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
