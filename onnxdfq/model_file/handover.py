"""A model from one process to another: a protobuf without its weights, and the weights beside it."""

from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdfq.model_file.through_proto import CARRIED_INLINE
from onnxdfq.model_file.uncached import UncachedTensor

_GRAPH, _WEIGHTS = "model.onnx", "onnxdfq.weights"
_ALIGNMENT = 64


def hand_over(model: ir.Model, folder: Path) -> None:
    """Writes the model into an empty folder; external weights that were not loaded stay where they are.

    Args:
        model: Is used up.
        folder: That both processes see.
    """
    with (folder / _WEIGHTS).open("wb") as file:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= CARRIED_INLINE:
                continue
            if tensor.dtype == ir.DataType.STRING:
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            start = file.tell()
            file.write(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                _WEIGHTS,
                start,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
    (folder / _GRAPH).write_bytes(ir.to_proto(model).SerializeToString())


def take_over(folder: Path, source: Path) -> ir.Model:
    """The model that `hand_over` wrote, its weights in memory.

    Args:
        folder: That it was written into.
        source: Of the model's own file, beside which weights lie that were not loaded.
    """
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString((folder / _GRAPH).read_bytes()))
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.location == _WEIGHTS:
            tensor.base_dir = folder
            (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])
        else:
            value.const_value = UncachedTensor.of(tensor, source.parent.resolve())
    return model
