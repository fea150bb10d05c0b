"""Tables of a diagnosis."""

import numpy as np
from numpy.typing import NDArray

from onnxdfq.report.diagnosis.case import squared_error
from onnxdfq.report.diagnosis.cases import Inquiry
from onnxdfq.report.diagnosis.evidence import Evidence, decibel
from onnxdfq.report.diagnosis.layers import Layer
from onnxdfq.report.diagnosis.result import Bars, LayerReport, TensorReport
from passes.graph.work import macs_of
from passes.quantize.quantizers import Grid, QuantizedConstant

BARS = 48


def layer_reports(inquiry: Inquiry) -> tuple[LayerReport, ...]:
    """A row to each layer, that of the most noise first; what was not measured stands last."""
    rows = []
    for layer in inquiry.layers:
        cost = inquiry.measured.cost(layer.parts & inquiry.network.everything)
        rows.append((-1.0 if cost is None else cost, _row(inquiry, layer, cost)))
    return tuple(row for _, row in sorted(rows, key=lambda entry: -entry[0]))


def _row(inquiry: Inquiry, layer: Layer, cost: float | None) -> LayerReport:
    kernel, weight = inquiry.kernel(layer), inquiry.stored.get(layer.weight)
    grids = [inquiry.network.quantizers[name].grid for name in layer.activations]
    left = inquiry.measured.costs.all_but.get(layer.name)
    return LayerReport(
        name=layer.name,
        op_type=layer.op_type,
        weight_bits=None if weight is None else weight.grid.bits,
        activation_bits=max((grid.bits for grid in grids), default=None),
        alone_db=None if cost is None else decibel(cost, 1.0),
        all_but_db=None if left is None else decibel(left, 1.0),
        kernel="" if kernel is None else kernel.verdict,
        reason="" if kernel is None else kernel.reason,
        bytes=sum(_bytes(inquiry.stored[name]) for name in layer.constants if name in inquiry.stored),
        macs=0 if layer.node is None else macs_of(layer.node),
        tensors=(
            *(_constant(inquiry, layer, name) for name in sorted(layer.constants) if name in inquiry.stored),
            *(_activation(inquiry, layer, name) for name in layer.activations),
        ),
        estimated=_is_estimated(inquiry, layer),
    )


def _is_estimated(inquiry: Inquiry, layer: Layer) -> bool:
    return layer.name in inquiry.measured.estimated


def _bytes(constant: QuantizedConstant) -> int:
    width = 8 if constant.grid.bits <= 8 else 16 if constant.grid.bits <= 16 else 32
    return constant.integers.size * (constant.grid.bits if constant.grid.bits in (2, 4) else width) // 8


def _activation(inquiry: Inquiry, layer: Layer, name: str) -> TensorReport:
    quantizer, seen = inquiry.network.quantizers[name], inquiry.seen(name)
    behind = inquiry.measured.runs.levels.get(name)
    cost = inquiry.measured.cost([name])
    own = None if seen is None or not quantizer.grid.per_tensor else squared_error(seen, quantizer.grid, quantizer.back)
    return TensorReport(
        name=quantizer.source,
        layer=layer.name,
        kind="activation",
        bits=quantizer.grid.bits,
        grid=_ends(quantizer.grid),
        least=None if seen is None else seen.least,
        greatest=None if seen is None else seen.greatest,
        own_db=None if own is None or seen is None else decibel(own, seen.signal),
        accumulated_db=None if behind is None else decibel(behind.noise, behind.signal),
        outputs_db=None if cost is None else decibel(cost, 1.0),
        bars=None if seen is None else _bars_of(seen),
        estimated=cost is not None and _is_estimated(inquiry, layer),
    )


def _constant(inquiry: Inquiry, layer: Layer, name: str) -> TensorReport:
    stored, pair = inquiry.stored[name], inquiry.network.constants.get(name)
    floats = stored.numbers if pair is None else pair.floats
    own = 0.0 if pair is None else float(np.square(pair.quantized.astype(np.float64) - pair.floats).mean())
    cost = inquiry.measured.cost([name]) if pair is not None else None
    return TensorReport(
        name=name,
        layer=layer.name,
        kind="weight" if name == layer.weight else "bias" if name == layer.bias else "constant",
        bits=stored.grid.bits,
        grid=_ends(stored.grid),
        least=float(floats.min(initial=0.0)),
        greatest=float(floats.max(initial=0.0)),
        own_db=decibel(own, float(np.square(floats.astype(np.float64)).mean())),
        accumulated_db=None,
        outputs_db=None if cost is None else decibel(cost, 1.0),
        bars=_bars(floats.astype(np.float64).reshape(-1), np.ones(floats.size)),
        estimated=cost is not None and _is_estimated(inquiry, layer),
    )


def _ends(grid: Grid) -> tuple[float, float]:
    """From where to where the widest of its channels reaches."""
    low = (grid.low - grid.zero.reshape(-1)) * grid.scale.reshape(-1)
    high = (grid.high - grid.zero.reshape(-1)) * grid.scale.reshape(-1)
    return float(low.min()), float(high.max())


def _bars_of(seen: Evidence) -> Bars | None:
    return _bars(seen.points, seen.counts.astype(np.float64))


def _bars(points: NDArray[np.float64], counts: NDArray[np.float64]) -> Bars | None:
    if not points.size or not np.isfinite(points).all():
        return None
    low, high = float(points.min()), float(points.max())
    if low == high:
        high = low + max(abs(low), 1.0)
    places = np.clip((points - low) * (BARS / (high - low)), 0, BARS - 1).astype(np.intp)
    found = np.bincount(places, counts, minlength=BARS)
    return Bars(low=low, high=high, counts=tuple(int(count) for count in found))
