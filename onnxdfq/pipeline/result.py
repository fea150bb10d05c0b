"""What a compression gives back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxdfq.methods import Images

Metrics = Mapping[str, float | int | None]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came out for one target. `path` is None when nothing was to be written; metrics are those of this file."""

    model: ir.Model
    path: Path | None
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out. `path` is None when nothing was to be written; metrics are the numbers that `--json` prints.

    images: None where the method makes none. written: by target, in the order of the recipe; model, path and metrics
    speak of the first.
    """

    model: ir.Model
    path: Path | None
    images: Images | None
    metrics: Metrics
    notes: Sequence[str]
    written: Mapping[str, Written] = field(default_factory=dict)
