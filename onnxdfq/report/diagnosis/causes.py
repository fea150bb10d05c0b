"""Why an activation is noisy: each cause is a small function of a `Case`. `CAUSES` lists them, the surest first."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnxdfq.report.diagnosis.case import CLEAR, FACTORS, Case, rescaled, shifted, squared_error
from onnxdfq.report.diagnosis.evidence import Evidence
from onnxdfq.report.diagnosis.result import Finding
from onnxdfq.report.diagnosis.weight_causes import WEIGHT_CAUSES
from passes.quantize.quantizers import Grid

Cause = Callable[[Case], Finding | None]

FEW = 4.0  # times as large as all others, and a channel or an input dominates
MANY = 4  # channels that there have to be
NOTABLE = 0.1  # share of all noise, for what is only worth saying where it matters
FLOAT_IT = "leave it in float (--keep-float)"


def not_finite(layer: str, tensor: str) -> Finding:
    """NaN or infinity where the float network has none: of no layer can be told what it costs."""
    return Finding(
        kind="not-finite",
        layer=layer,
        tensor=tensor,
        cause=f"from {tensor} on the file computes NaN or infinity, and the float model does not: as a rule something "
        "that is divided by was rounded to 0",
        remedies=(f"for what this node reads: {FLOAT_IT}", "a finer scale, on which it does not become 0 (--plan)"),
        harm=0.0,
    )


def differing_pair(case: Case) -> Finding | None:
    """Quantize and Dequantize have to agree."""
    one = case.quantizer
    if one is None:
        return None
    other = one.back
    same = one.grid.scale.shape == other.scale.shape and np.allclose(one.grid.scale, other.scale, rtol=1e-4)
    if same and one.grid.zero.shape == other.zero.shape and np.array_equal(one.grid.zero, other.zero):
        return None
    return case.found(
        "pair",
        f"{case.tensor} is quantized by scale {_first(one.grid.scale):g} and zero point {_first(one.grid.zero):g}, and "
        f"dequantized by {_first(other.scale):g} and {_first(other.zero):g}",
        "give QuantizeLinear and DequantizeLinear the same scale and zero point",
    )


def ranges_in_concat(case: Case) -> Finding | None:
    """One grid for values of two ranges: boxes and scores."""
    grid = None if case.quantizer is None else case.quantizer.grid
    if grid is None or not grid.per_tensor:
        return None
    if case.inputs:
        ranges = {name: max(-one.least, one.greatest) for name, (one, _) in case.inputs.items()}
    elif case.siblings and all(own is not None and _same(own, grid) for _, own in case.siblings.values()):
        ranges = {name: max(-one.least, one.greatest) for name, (one, _) in case.siblings.items()}
        if case.tensor in ranges and ranges[case.tensor] * FEW > max(ranges.values()):
            return None  # it is the wide one
    else:
        return None
    positive = {name: size for name, size in ranges.items() if size > 0}
    if len(positive) < 2:
        return None
    small, large = min(positive, key=positive.__getitem__), max(positive, key=positive.__getitem__)
    ratio = positive[large] / positive[small]
    if ratio < FEW:
        return None
    return case.found(
        "concat",
        f"the Concat {case.layer.name if case.inputs else 'behind it'} puts {large} (up to {positive[large]:.4g}) and "
        f"{small} (up to {positive[small]:.4g}, {ratio:.3g} times less) on one grid with steps of "
        f"{_first(grid.scale):.4g}",
        "end the network before the Concat and let the application join the parts",
        f"scale {large} down by {_power_above(ratio):g} in the network, and up again behind it",
        f"give the Concat 16 bits, or {FLOAT_IT}",
        gain=1 - ratio**-2,
    )


def zero_point(case: Case) -> Finding | None:
    """Another zero point with the same steps would hold the values."""
    found = _of_tensor(case)
    if found is None:
        return None
    evidence, grid, now = found
    if _cuts_a_tail(evidence, grid):
        return None
    zero, scale = int(_first(grid.zero)), _first(grid.scale)
    low, high = grid.low - evidence.least / scale, grid.high - evidence.greatest / scale
    candidates = {min(max(round(end), grid.low), grid.high) for end in (low, high, (low + high) / 2)}
    best = min(candidates, key=lambda one: squared_error(evidence, shifted(grid, one)))
    gain = 1 - squared_error(evidence, shifted(grid, best)) / now
    if gain < CLEAR:
        return None
    least, greatest = grid.ends
    return case.found(
        "zero-point",
        f"the zero point of {case.tensor} is {zero}, so its grid runs from {least:.4g} to {greatest:.4g}, while its "
        f"values run from {evidence.least:.4g} to {evidence.greatest:.4g}",
        f"a zero point of {best}, rounded and not truncated; or a grid with a sign",
        gain=gain,
    )


def negative_tail(case: Case) -> Finding | None:
    """Values below a grid that begins at 0 are cut off; a sign for a few of them costs a bit."""
    found = _of_tensor(case)
    if found is None:
        return None
    evidence, grid, now = found
    least, greatest = grid.ends
    if least >= 0 > evidence.least:
        below = evidence.points < least
        cut = float(np.square(evidence.points[below] - least) @ evidence.counts[below]) / evidence.total
        if cut < 0.5 * now:
            return None
        share = float(evidence.counts[below].sum()) / evidence.total
        return case.found(
            "negative-tail",
            f"the grid of {case.tensor} begins at {least:.4g} and cuts off its values down to {evidence.least:.4g} "
            f"({share:.1%} of them)",
            "a grid that begins below zero: a sign, a zero point, or --shift-negative",
            gain=cut / now,
        )
    if least >= 0 or evidence.least < least / FEW or evidence.greatest < greatest / 2:
        return None
    tail = f"few values of {case.tensor} are negative (down to {evidence.least:.4g})"
    none = f"no value of {case.tensor} is negative"
    if case.share < NOTABLE:
        return None
    return case.found(
        "negative-tail",
        f"{tail if evidence.least < 0 else none}, and half of its grid ({least:.4g} to {greatest:.4g}) is for these",
        "--shift-negative, or a zero point: it gives a bit back" if evidence.least < 0 else "a grid without a sign",
        gain=0.75,
    )


def threshold(case: Case) -> Finding | None:
    """Other steps would hold the values far better."""
    found = _of_tensor(case)
    if found is None:
        return None
    evidence, grid, now = found
    errors = [squared_error(evidence, rescaled(grid, factor)) for factor in FACTORS]
    best = FACTORS[int(np.argmin(errors))]
    gain = 1 - min(errors) / now
    if gain < CLEAR or 0.4 < best < 2.5:
        return None
    least, greatest = grid.ends
    outside = (evidence.points > greatest) | (evidence.points < least)
    beyond = float(evidence.counts[outside].sum()) / evidence.total
    reaches = f"its values reach from {evidence.least:.4g} to {evidence.greatest:.4g}"
    if best > 1:
        said = f"{case.tensor} saturates: {beyond:.1%} of its values lie beyond {least:.4g} or {greatest:.4g}"
    else:
        said = f"the grid of {case.tensor} is too wide: it reaches from {least:.4g} to {greatest:.4g}"
    return case.found(
        "threshold",
        f"{said}; {reaches}",
        f"a scale about {best:.3g} times as large: calibrate with inputs like those that it will see",
        gain=gain,
    )


def channel(case: Case) -> Finding | None:
    """One channel, or a few, set the range of all."""
    grid, evidence = None if case.quantizer is None else case.quantizer.grid, case.evidence
    if grid is None or evidence is None or evidence.channels is None or not grid.per_tensor:
        return None
    said = dominating(evidence)
    if said is None:
        return None
    text, ratio = said
    return case.found(
        "channel",
        f"{text} of {case.tensor}, and all share one scale",
        "even the channels out (--equalize)",
        "split the channel (--split-channels 0.02)",
        gain=1 - ratio**-2,
    )


def dominating(evidence: Evidence) -> tuple[str, float] | None:
    """Which channel reaches how much further than the others, in words; and the ratio. None where none does."""
    channels = evidence.channels
    if channels is None or len(channels) < MANY:
        return None
    order = np.argsort(channels)[::-1]
    few = max(len(channels) // 16, 1)
    rest = float(channels[order[few]])
    ratio = float(channels[order[0]]) / rest if rest > 0 else np.inf
    if ratio < FEW or not np.isfinite(ratio):
        return None
    return (
        f"channel {int(order[0])} reaches {float(channels[order[0]]):.4g}, {ratio:.3g} times as far as the other "
        f"{len(channels) - few} channels",
        ratio,
    )


def softmax(case: Case) -> Finding | None:
    """Of a Softmax few numbers are large, and most lie below one step of 8 bits."""
    if case.quantizer is None or case.layer.op_type not in ("Softmax", "LogSoftmax") or case.quantizer.grid.bits > 8:
        return None
    if case.share < NOTABLE:
        return None
    return case.found(
        "softmax",
        f"the {case.layer.op_type} {case.layer.name} is quantized to {case.quantizer.grid.bits} bits, in steps of "
        f"{_first(case.quantizer.grid.scale):.3g}, and most of its numbers are smaller than a step or near it",
        FLOAT_IT,
        "16 bits for it",
    )


def between_floats(case: Case) -> Finding | None:
    """Noise that spares nothing, as the target computes all around it in float."""
    if case.quantizer is None or case.kernel is None or case.kernel.verdict != "float" or not case.read_in_float:
        return None
    return case.found(
        "float-kernel",
        f"the target computes {case.layer.op_type} {case.layer.name} and all that reads it in float "
        f"({case.kernel.reason}), so that quantizing {case.tensor} costs accuracy and spares no time",
        FLOAT_IT,
    )


def float_layer(case: Case) -> Finding | None:
    """A weight whose layer runs in float."""
    if case.stored is None or case.kernel is None or case.kernel.verdict != "float" or case.tensor != case.layer.weight:
        return None
    return case.found(
        "float-kernel",
        f"the target computes {case.layer.op_type} {case.layer.name} in float, although its weight is quantized: "
        f"{case.kernel.reason}",
        case.kernel.advice or FLOAT_IT,
    )


def wider_activation(case: Case) -> Finding | None:
    """Nothing is wrong with the grid, and it is still too coarse."""
    if case.quantizer is None or case.quantizer.grid.bits > 8 or case.share < NOTABLE:
        return None
    bits, fits = case.quantizer.grid.bits, "" if case.evidence is None else ", and its grid fits its values"
    return case.found(
        "bits",
        f"{case.share:.0%} of the noise comes from {case.tensor} at {bits} bits{fits}",
        f"{'16' if bits == 8 else '8'} bits for this tensor (--plan), or {FLOAT_IT}",
    )


def wider_weight(case: Case) -> Finding | None:
    """The same of a weight."""
    if case.stored is None or case.tensor != case.layer.weight or case.share < NOTABLE:
        return None
    return case.found(
        "weight-bits",
        f"{case.share:.0%} of the noise comes from the weight of {case.layer.name} at {case.stored.grid.bits} bits",
        "more bits for this layer (--plan)",
        "--tuning brecq, which finds better roundings",
    )


CAUSES: Sequence[Cause] = (
    differing_pair,
    ranges_in_concat,
    softmax,
    zero_point,
    threshold,
    negative_tail,
    channel,
    *WEIGHT_CAUSES,
    between_floats,
    float_layer,
)
FALLBACKS: Sequence[Cause] = (wider_activation, wider_weight)
"""Where no cause explains half of the noise."""


def findings_of(case: Case) -> Iterator[Finding]:
    """All causes of a case; what only asks for more bits where there is no other."""
    found = [one for cause in CAUSES if (one := cause(case)) is not None]
    yield from found
    if not any(one.harm > 0.5 * case.harm for one in found):
        yield from (one for cause in FALLBACKS if (one := cause(case)) is not None)


def _of_tensor(case: Case) -> tuple[Evidence, Grid, float] | None:
    """Evidence, grid and error of an activation with one scale, where there is an error."""
    quantizer, evidence = case.quantizer, case.evidence
    if quantizer is None or evidence is None or not quantizer.grid.per_tensor:
        return None
    now = squared_error(evidence, quantizer.grid)
    return (evidence, quantizer.grid, now) if now > 0 else None


def _cuts_a_tail(evidence: Evidence, grid: Grid) -> bool:
    """Whether a grid without sign lacks room for a few small negative numbers: what Gelu and its kin give."""
    return grid.ends[0] >= 0 > evidence.least > -evidence.greatest / FEW


def _same(one: Grid, other: Grid) -> bool:
    return one.per_tensor and bool(np.isclose(_first(one.scale), _first(other.scale), rtol=1e-6))


def _first(array: np.ndarray) -> float:
    return float(array.reshape(-1)[0])


def _power_above(ratio: float) -> float:
    return float(2.0 ** np.ceil(np.log2(ratio)))
