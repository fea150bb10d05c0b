"""Graph passes: ONNX in, ONNX out. They need onnx, onnx-ir and numpy, and nothing else of this project.

from passes import Canonicalize, FoldBatchNorm
FoldBatchNorm()(Canonicalize()(model).model)

A pass edits the model that it is given. What it did, node by node, goes to the logger of its module at level DEBUG.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passes.canonical.canonicalize import Canonicalize
    from passes.canonical.fold_batch_norm import FoldBatchNorm
    from passes.dfmpc.plan import CompensateWeights
    from passes.dfq.absorb_bias import AbsorbHighBias
    from passes.dfq.equalize import EqualizeChannels
    from passes.dfq.lift_clips import LiftClips
    from passes.graph.strided import MarkStrided
    from passes.ocs import SplitChannels
    from passes.prune.remove_channels import RemoveChannels
    from passes.prune.zero_weights import ZeroWeights
    from passes.quantize.take_out import TakeOutQuantizers
    from passes.write.batch_norm_to_conv import BatchNormToConv
    from passes.write.block_weights import BlockWeights
    from passes.write.fix_batch import FixBatch
    from passes.write.insert_qdq import InsertQdq
    from passes.write.provenance import WriteProvenance
    from passes.write.qoperator import ToQOperator
    from passes.write.set_opset import SetOpset
    from passes.write.shift_negative import ShiftNegative
    from passes.write.write_for_target import WriteForTarget
    from passes.write.write_initializers import WriteInitializers

PART_OF = "onnxdfq"  # by which onnxdfq tells its own package from a folder of the user's that has the same name

# Imported on first use: `import passes` stays free of onnx and numpy.
_HOMES = {
    "AbsorbHighBias": "dfq.absorb_bias",
    "BatchNormToConv": "write.batch_norm_to_conv",
    "BlockWeights": "write.block_weights",
    "Canonicalize": "canonical.canonicalize",
    "CompensateWeights": "dfmpc.plan",
    "EqualizeChannels": "dfq.equalize",
    "FixBatch": "write.fix_batch",
    "FoldBatchNorm": "canonical.fold_batch_norm",
    "InsertQdq": "write.insert_qdq",
    "LiftClips": "dfq.lift_clips",
    "MarkStrided": "graph.strided",
    "RemoveChannels": "prune.remove_channels",
    "SetOpset": "write.set_opset",
    "ShiftNegative": "write.shift_negative",
    "SplitChannels": "ocs",
    "TakeOutQuantizers": "quantize.take_out",
    "ToQOperator": "write.qoperator",
    "WriteForTarget": "write.write_for_target",
    "WriteInitializers": "write.write_initializers",
    "WriteProvenance": "write.provenance",
    "ZeroWeights": "prune.zero_weights",
}

__all__ = [
    "AbsorbHighBias",
    "BatchNormToConv",
    "BlockWeights",
    "Canonicalize",
    "CompensateWeights",
    "EqualizeChannels",
    "FixBatch",
    "FoldBatchNorm",
    "InsertQdq",
    "LiftClips",
    "MarkStrided",
    "RemoveChannels",
    "SetOpset",
    "ShiftNegative",
    "SplitChannels",
    "TakeOutQuantizers",
    "ToQOperator",
    "WriteForTarget",
    "WriteInitializers",
    "WriteProvenance",
    "ZeroWeights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'passes' has no attribute {name!r}")
    return getattr(import_module(f"passes.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
