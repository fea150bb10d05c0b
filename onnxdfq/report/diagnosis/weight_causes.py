"""Why a weight or a bias is noisy."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from onnxdfq.report.diagnosis.case import CLEAR, FACTORS, Case
from onnxdfq.report.diagnosis.matching import output_axis
from onnxdfq.report.diagnosis.result import Finding

Matrix = Float64[NDArray[np.float64], "c k"]

FAR_OFF = 0.25  # relative, of a channel's size
MISMATCH = 0.01  # relative, of scales: what ONNX Runtime allows
COARSE = 1e-3  # mean squared error of a bias over the power of what the layer computes


def wrong_scale(case: Case) -> Finding | None:
    """Whole channels are larger or smaller than in the float model."""
    rows = _rows(case)
    if rows is None:
        return None
    now, exact = rows
    power = np.square(exact).sum(axis=1)
    size = np.where(power > 0, (now * exact).sum(axis=1) / np.maximum(power, 1e-30), 1.0)
    off = np.flatnonzero(np.abs(size - 1) > FAR_OFF)
    rest = np.square(now - size[:, None] * exact).sum() / max(np.square(now - exact).sum(), 1e-30)
    if not len(off) or rest > 1 - CLEAR:
        return None
    worst = int(off[np.argmax(np.abs(np.log(np.maximum(np.abs(size[off]), 1e-6))))])
    which = "all channels" if len(off) == len(size) > 1 else f"{len(off)} of {len(size)} channels"
    return case.found(
        "weight-scale",
        f"the weight of {case.layer.name} is not the float one in {which}: channel {worst} is {size[worst]:.3g} times "
        "as large; its scale is wrong, or the wrong threshold saturates it",
        "write the scale that its integers were made with; compress again",
        gain=1 - float(rest),
    )


def weight_threshold(case: Case) -> Finding | None:
    """Other steps for some channels would hold their weights far better."""
    rows, grid = _rows(case), None if case.stored is None else case.stored.grid
    if rows is None or grid is None or grid.block:
        return None
    now, exact = rows
    step = np.broadcast_to(grid.scale.reshape(-1, 1), (len(exact), 1)) if grid.scale.size in (1, len(exact)) else None
    if step is None or np.any(grid.zero != grid.zero.reshape(-1)[0]):
        return None
    zero = int(grid.zero.reshape(-1)[0])
    low, high = grid.low - zero, grid.high - zero
    errors = np.stack(
        [
            np.square(np.clip(np.rint(exact / (step * factor)), low, high) * step * factor - exact).sum(axis=1)
            for factor in FACTORS
        ]
    )  # (factors, C)
    if grid.per_tensor:  # the channels go together
        errors = errors.sum(axis=1, keepdims=True)
    best, present = errors.min(axis=0), np.square(now - exact).sum(axis=1)
    gain = 1 - best.sum() / max(present.sum(), 1e-30)
    if gain < CLEAR:
        return None
    change = FACTORS[errors.argmin(axis=0)]
    worst = int(np.argmax(present - best)) if len(best) == len(present) else 0
    which = "its one scale" if len(best) != len(present) else f"the scale of channel {worst}"
    way = "saturates weights" if change[worst] > 1 else "leaves most of its integers unused"
    return case.found(
        "weight-threshold",
        f"the grid of the weight of {case.layer.name} does not fit: {which} {way}; {change[worst]:.3g} times it "
        "would do",
        "choose the thresholds of this weight anew (--clipping mse)",
        gain=float(gain),
    )


def one_scale_for_all(case: Case) -> Finding | None:
    """A scale per tensor, set by one channel."""
    rows, grid = _rows(case), None if case.stored is None else case.stored.grid
    if rows is None or grid is None or not grid.per_tensor or len(rows[0]) < 2:
        return None
    now, exact = rows
    half = max(2.0 ** (grid.bits - 1) - 1, 1)
    greatest = np.abs(exact).max(axis=1)
    step = np.maximum(greatest / half, 1e-30)[:, None]
    own = np.square(np.rint(exact / step) * step - exact).sum()
    gain = 1 - float(own) / max(float(np.square(now - exact).sum()), 1e-30)
    order = np.argsort(greatest)
    ratio = greatest[order[-1]] / max(np.median(greatest), 1e-30)
    if gain < CLEAR or ratio < 4:
        return None
    return case.found(
        "channel",
        f"channel {int(order[-1])} of the weight of {case.layer.name} reaches {greatest[order[-1]]:.4g}, {ratio:.3g} "
        "times as far as the median of the others, and all share one scale",
        "one scale to each output channel, where the target takes that",
        "even the channels out (--equalize)",
        gain=gain,
    )


def input_channel(case: Case) -> Finding | None:
    """Weights of one input channel are small, and what they multiply is large: their rounding is what is heard."""
    constant, node, read = case.constant, case.layer.node, case.read
    if constant is None or node is None or read is None or read.powers is None or case.tensor != case.layer.weight:
        return None
    error = np.square(constant.quantized.astype(np.float64) - constant.floats)
    axis = {"Conv": 1, "ConvTranspose": 0}.get(node.op_type)
    if axis is None:
        axis = 1 - output_axis(node, 2) if error.ndim == 2 else None
    if axis is None or error.ndim < 2 or error.shape[axis] != len(read.powers) or len(read.powers) < 4:
        return None
    heard = error.sum(axis=tuple(place for place in range(error.ndim) if place != axis)) * read.powers
    worst = int(np.argmax(heard))
    share = float(heard[worst] / max(heard.sum(), 1e-30))
    if share < 0.5:
        return None
    return case.found(
        "channel",
        f"channel {worst} of what {case.layer.name} reads is so much larger than the others, and its weights so much "
        f"smaller, that {share:.0%} of the noise comes from their rounding",
        "even the channels out (--equalize)",
        "split the channel (--split-channels 0.02)",
        gain=share,
    )


def bias_grid(case: Case) -> Finding | None:
    """A bias on another grid than the accumulator's, or on one that is too coarse."""
    stored, constant, wanted = case.stored, case.constant, case.bias_scale
    if stored is None or not case.layer.bias or case.tensor != case.layer.bias:
        return None
    if wanted is not None and stored.grid.bits > 16:
        scale = stored.grid.scale.reshape(-1)
        if scale.size in (1, wanted.size) and not np.allclose(scale, wanted, rtol=MISMATCH):
            ratio = float(np.max(np.maximum(scale / wanted, wanted / scale)))
            return case.found(
                "bias",
                f"the int32 bias of {case.layer.name} has another scale than its input times its weight, by "
                f"{ratio:.3g} times: integer kernels add it as it is, and compute another number",
                "write the bias in float, or with the scale of the input times that of the weight",
            )
    if constant is None or case.computed is None or case.computed.signal <= 0:
        return None
    error = float(np.square(constant.quantized.astype(np.float64) - constant.floats).mean())
    if error < COARSE * case.computed.signal:
        return None
    return case.found(
        "bias",
        f"the bias of {case.layer.name} is off by {error**0.5:.3g} on average, in steps of "
        f"{float(stored.grid.scale.max()):.3g}; the layer computes numbers of "
        f"about {case.computed.signal**0.5:.3g}",
        "keep the bias in float or int32",
    )


def _rows(case: Case) -> tuple[Matrix, Matrix] | None:
    """The weight in the file and in the float model, a row to each output channel; None where they do not differ."""
    constant, node = case.constant, case.layer.node
    if constant is None or node is None or case.tensor != case.layer.weight or constant.floats.ndim < 2:
        return None
    axis = output_axis(node, constant.floats.ndim)
    now, exact = (
        np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)
        for array in (constant.quantized, constant.floats)
    )
    return None if np.array_equal(now, exact) else (now, exact)


WEIGHT_CAUSES: Sequence[Callable[[Case], Finding | None]] = (
    wrong_scale,
    weight_threshold,
    one_scale_for_all,
    input_channel,
    bias_grid,
)
