"""A float model in memory: `load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def load(model: Path | str, *, input_shape: Mapping[str, Sequence[int]] | None = None) -> ir.Model:
    """A float model as passes take it: checked, converted to a current opset, in canonical form, its
    BatchNormalizations in place.

    Args:
        model: a path.
        input_shape: by input, sizes that the file leaves open.

    Raises:
        ModelFileError, ShapeError, UnsupportedOperator: the file cannot be used.
    """
    from onnxdfq.model_file import load_model
    from passes.canonical.canonicalize import Canonicalize

    graph = load_model(Path(model), input_shape=input_shape or {})
    Canonicalize()(graph)
    return graph
