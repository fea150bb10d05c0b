"""Histograms as SVG: numbers only, so that nothing of a model's names goes into markup here."""

from dataclasses import dataclass

import numpy as np

from onnxdfq.report.diagnosis.result import TensorReport

WIDTH, HEIGHT = 320.0, 72.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """path: of the bars, as the attribute `d` has it. low, high: where the ends of the grid lie, across. left, right:
    what the ends of the drawing stand for."""

    path: str
    low: float
    high: float
    left: float
    right: float


def drawing_of(tensor: TensorReport) -> Drawing | None:
    """Bars of the tensor's numbers, their heights on a logarithmic scale, and the ends of its grid."""
    bars = tensor.bars
    if bars is None or not bars.counts or not np.isfinite([bars.low, bars.high, *tensor.grid]).all():
        return None
    left, right = min(bars.low, tensor.grid[0]), max(bars.high, tensor.grid[1])
    if not right > left:
        return None
    scale = WIDTH / (right - left)
    heights = np.log1p(np.asarray(bars.counts, np.float64).clip(0))
    heights *= HEIGHT / max(float(heights.max()), 1e-12)
    edges = (np.linspace(bars.low, bars.high, len(heights) + 1) - left) * scale
    path = "".join(
        f"M{start:.1f} {HEIGHT:g}V{HEIGHT - height:.1f}H{end:.1f}V{HEIGHT:g}"
        for start, end, height in zip(edges[:-1], edges[1:], heights, strict=True)
        if height > 0
    )
    low, high = ((end - left) * scale for end in tensor.grid)
    return Drawing(path=path, low=low, high=high, left=left, right=right)
