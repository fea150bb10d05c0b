"""`Case`: what a cause is looked for in."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxdfq.report.diagnosis.evidence import Evidence, Level
from onnxdfq.report.diagnosis.layers import Layer
from onnxdfq.report.diagnosis.result import Finding
from onnxdfq.report.diagnosis.switches import Constant
from passes.lint.lint import Finding as Kernel
from passes.quantize.quantizers import Grid, QuantizedConstant, Quantizer

CLEAR = 0.8  # of a tensor's noise that a remedy has to spare, before its cause is called known
OUTSIDE = ("--plan", "--keep-float")  # options that name nothing in bodies
FACTORS = 2.0 ** (np.arange(-24, 25) / 2)  # of the scale; a factor of 2 alone spares 3/4 at most, and is a choice


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """Something that is quantized, and all that is known of it.

    layer: that it belongs to. harm: what it costs the outputs alone; estimated: whether no run told that. share: of
    what all cost. kernel: what the target makes of the layer. read_in_float: whether the target computes all that reads
    the value in float. inside: whether it is quantized in a body of an If, Loop or Scan.
    of an activation: quantizer, evidence of the float value, and inputs: what the layer's own inputs were (of a
    Concat), in order, with their grids.
    of a weight or bias: constant, both versions of it; stored, as the file has it; bias_scale: what the scale of the
    bias has to be on integer kernels; read: evidence of what the layer multiplies the weight with; computed: level of
    what it computes.
    """

    layer: Layer
    tensor: str
    harm: float
    share: float
    estimated: bool = False
    kernel: Kernel | None = None
    read_in_float: bool = False
    inside: bool = False
    quantizer: Quantizer | None = None
    evidence: Evidence | None = None
    inputs: Mapping[str, tuple[Evidence, Grid | None]] | None = None
    siblings: Mapping[str, tuple[Evidence, Grid | None]] | None = None
    constant: Constant | None = None
    stored: QuantizedConstant | None = None
    bias_scale: np.ndarray | None = None
    read: Evidence | None = None
    computed: Level | None = None

    def found(self, kind: str, cause: str, *remedies: str, gain: float = 1.0, harm: float | None = None) -> Finding:
        """A finding. gain: the share of the noise that the remedy spares. harm: where it is not that of the case."""
        if self.inside and any(option in remedy for remedy in remedies for option in OUTSIDE):
            others = (remedy for remedy in remedies if not any(option in remedy for option in OUTSIDE))
            remedies = (*others, f"more bits for the whole network (--bits): {' and '.join(OUTSIDE)} reach no body")
        return Finding(
            kind=kind,
            layer=self.layer.name,
            tensor=self.tensor,
            cause=cause,
            remedies=tuple(remedies),
            harm=(self.harm if harm is None else harm) * gain,
            estimated=self.estimated,
        )


def squared_error(evidence: Evidence, grid: Grid, back: Grid | None = None) -> float:
    """Mean squared error of a grid with one scale over a histogram."""
    found = (back or grid).numbers(grid.integers(evidence.points))
    return float(np.square(found - evidence.points) @ evidence.counts) / max(evidence.total, 1)


def shifted(grid: Grid, zero: int) -> Grid:
    """The grid with another zero point."""
    return replace(grid, zero=np.full_like(grid.zero, zero))


def rescaled(grid: Grid, factor: float) -> Grid:
    """The grid with wider or narrower steps."""
    return replace(grid, scale=np.asarray(grid.scale * factor))
