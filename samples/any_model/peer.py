"""What ONNX Runtime's own `quantize_static` makes of a model: `python -m samples.any_model.peer MODEL ARRAYS OUTPUT`.

QDQ, per channel, min-max, on the arrays of an .npz by input name.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Runs of a model: one sample at a time, or `together` where the file holds such a batch."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], ranks: Mapping[str, list[int | str]], together: int) -> None:
        self._runs = self._split(arrays, ranks, together)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """As ONNX Runtime asks for it."""
        return next(self._runs, None)

    @staticmethod
    def _split(
        arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, list[int | str]], together: int
    ) -> Iterator[dict[str, NDArray[Any]]]:
        axes = {
            name: 1 if shape and isinstance(shape[0], int) and shape[0] > 1 else 0 for name, shape in shapes.items()
        }
        count = max(array.shape[axes[name]] for name, array in arrays.items() if array.ndim)
        for start in range(0, count, together):
            rows = np.arange(start, min(start + together, count))
            yield {name: array.take(rows, axes[name]) if array.ndim else array for name, array in arrays.items()}


def quantize(model: Path, arrays: Mapping[str, NDArray[Any]], output: Path) -> None:
    """Preprocess as ONNX Runtime advises, and quantize; where either fails, without the symbolic shapes, or by twos.

    Per channel needs opset 13, and below it gives an invalid file: such a model is converted first. Nodes may come out
    in no order; they are sorted.
    """
    loaded = onnx.load(model)
    graph = loaded.graph
    known = {tensor.name for tensor in graph.initializer}
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in known
    }
    with tempfile.TemporaryDirectory() as folder:
        if next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx")) < 13:
            loaded.ir_version = max(loaded.ir_version, 8)
            onnx.save(onnx.version_converter.convert_version(loaded, 17), model := Path(folder) / "converted.onnx")
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(model, prepared)
        except Exception:  # whatever its shape inference stumbles over
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
        for together in (1, 2):
            try:
                quantize_static(
                    prepared, output, Reader(arrays, shapes, together), quant_format=QuantFormat.QDQ, per_channel=True
                )
                break
            except Exception:
                if together == 2:
                    raise
    sorted_model = ir.load(output)
    sorted_model.graph.sort()
    ir.save(sorted_model, output)


if __name__ == "__main__":
    source, data, target = map(Path, sys.argv[1:])
    with np.load(data) as file:
        quantize(source, dict(file), target)
