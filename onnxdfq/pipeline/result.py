"""What a compression gives back."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import onnx_ir as ir

if TYPE_CHECKING:
    from onnxdfq.images.images import Images
    from passes.lint.lint import Finding
    from passes.quantize.plan import QuantPlan


class Metrics(TypedDict, total=False):
    """The numbers that `--json` prints; what was not measured is not there, or None.

    Of a synthesis: card, what the images are worth by each model that made them (see `onnxdfq.synthesis.card`).

    Of the whole run: images, bn_distance and confident (see `onnxdfq.synthesis.quality`), similarity_by_label (of a
    generator's images, see `onnxdfq.synthesis.diversity`), batch_norms_folded,
    layers_equalized, biases_absorbed, layers_split, layers_in_blocks (whose weights have a scale for every block),
    bytes_float, seconds, peak_memory (bytes, of the process); of a
    pruning: layer_channels and layer_channels_removed (outputs of all layers), weights_float and weights (of layers,
    those that are not zero), macs_float and macs (multiplications per sample, zeros among them).

    Of one file: bytes, nodes_integer and nodes_float (see `onnxdfq.lint`), blocks_tuned, loss_curve (of training: rows
    of step, loss, held-back loss, and the parts of the loss where there are several), weight_bytes and bit_operations
    (under a budget), drop and layers_float (under one of answers: points of these that change, layers that stay float),
    agreement_images and sqnr_db_images (on the images that calibrated it),
    agreement_held_back and sqnr_db_held_back (on `held_back` inputs that decided nothing: dead leaves, or some of
    the user's own), verdict ("good" above 25 dB, "fair", "poor" below 12; "unknown" where there was nothing but zeros
    to compare), and count, top1, top1_float, agreement, sqnr_db (on the data to evaluate on). Shares lie between 0 and
    1; the SQNR is that of the worst output, or of its parts that a Concat put together (a detector's boxes and scores).
    """

    images: int
    bn_distance: float
    similarity_by_label: float | None
    confident: float | None
    card: dict[str, Any]
    batch_norms_folded: int
    layers_equalized: int
    biases_absorbed: int
    layers_split: int
    bytes_float: int
    layer_channels: int
    layer_channels_removed: int
    weights_float: int
    weights: int
    macs_float: int
    macs: int
    seconds: float
    peak_memory: int | None
    bytes: int
    blocks_tuned: int
    loss_curve: list[list[float | None]]
    weight_bytes: int
    drop: float
    layers_float: int
    layers_in_blocks: int
    bit_operations: int
    agreement_images: float | None
    sqnr_db_images: float | None
    nodes_integer: int
    nodes_float: int
    held_back: int
    agreement_held_back: float | None
    sqnr_db_held_back: float | None
    verdict: str
    count: int
    top1: float | None
    top1_float: float | None
    agreement: float | None
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetResult:
    """What came out for one target.

    model: the quantized graph. plan: all numbers that it was written by. path: None where nothing was to be written.
    metrics: those of this file. findings: what the target will do with each node (see `onnxdfq.lint`).
    """

    model: ir.Model
    plan: QuantPlan
    path: Path | None
    metrics: Metrics
    findings: tuple[Finding, ...] = ()

    def save(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the model to a file. Raises OutputError."""
        from onnxdfq.model_file import save_model

        save_model(self.model, Path(path), force=force)
        return Path(path)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What came out of a run.

    method: the name of the one that ran. images: None where it makes none. metrics: of the run and of the first target.
    notes: what the user should know, a sentence each. targets: by name, in the order of the recipe. original: the
    float network, canonical, with its BatchNormalizations, while a report is to be written; else None. distances: node
    name of each BatchNormalization → how far the images are from what it remembers.
    """

    model: ir.Model
    path: Path | None
    method: str
    images: Images | None
    metrics: Metrics
    notes: Sequence[str]
    targets: Mapping[str, TargetResult] = field(default_factory=dict)
    original: ir.Model | None = None
    distances: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the model of the first target to a file. Raises OutputError."""
        from onnxdfq.model_file import save_model

        save_model(self.model, Path(path), force=force)
        return Path(path)

    def unwritten(self) -> Result:
        """The same without paths, for what was written to a folder that is gone."""
        targets = {name: replace(found, path=None) for name, found in self.targets.items()}
        return replace(self, path=None, targets=targets)

    def _repr_html_(self) -> str:
        """A table for Jupyter: one row a number, one column a target."""
        targets: Mapping[str, TargetResult | None] = self.targets or {"": None}
        keys = list(dict.fromkeys(key for part in self.targets.values() for key in part.metrics)) or list(self.metrics)
        rows = [
            f"<tr><th>{html.escape(key)}</th>"
            + "".join(
                f"<td>{html.escape(str((self.metrics if part is None else part.metrics).get(key, '')))}</td>"
                for part in targets.values()
            )
            + "</tr>"
            for key in keys
        ]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in targets)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<table><tr><th>{html.escape(self.method)}</th>{head}</tr>{''.join(rows)}</table><ul>{notes}</ul>"
