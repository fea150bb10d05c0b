"""What a diagnosis gives back. Nothing here loads torch: reports are read and shown without."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause of noise. kind: a word for scripts. layer, tensor: where. cause: a sentence; remedies: what to try.

    harm: noise power over signal power at the outputs that the remedy would spare, about. estimated: whether it rests
    on gradients (see `LayerReport`).
    """

    kind: str
    layer: str
    tensor: str
    cause: str
    remedies: tuple[str, ...]
    harm: float
    estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A histogram to draw: counts of equally wide bins from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TensorReport:
    """Something quantized. kind: "activation", "weight" or "bias".

    bits, grid: what it is held in, and from where to where; least, greatest: of the float numbers. own_db: its numbers
    over its own rounding. accumulated_db: over all noise that reaches it, its own included; of activations alone.
    outputs_db: the outputs over what it alone costs them; estimated: whether that is no measurement (see
    `LayerReport`). None where there is no noise, or it was not measured.
    """

    name: str
    layer: str
    kind: str
    bits: int
    grid: tuple[float, float]
    least: float | None
    greatest: float | None
    own_db: float | None
    accumulated_db: float | None
    outputs_db: float | None
    bars: Bars | None
    estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """A layer. alone_db: the outputs over what the layer costs them when it alone is quantized; all_but_db: over the
    noise that is left when all but the layer is. kernel: what the target makes of it: "integer", "float", "refused",
    or "" where that is not judged, and why. bytes: of its constants. macs: multiplications a sample. estimated: whether
    alone_db and all_but_db follow from gradients, to some 2 dB, and not from runs with one thing changed."""

    name: str
    op_type: str
    weight_bits: int | None
    activation_bits: int | None
    alone_db: float | None
    all_but_db: float | None
    kernel: str
    reason: str
    bytes: int
    macs: int
    tensors: tuple[TensorReport, ...]
    estimated: bool = False


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Of one file. against: the float model that it was held against, "" where it was its own. by: which tool quantized
    it. samples: how many, and data, what they were. sqnr_db: of the worst output, None without any noise. layers: worst
    first. findings: those that cost most first. notes: what to know about these figures, a sentence each. not_finite:
    from which node on the file computes NaN or infinity, and the float model does not; then there are no figures."""

    file: str
    against: str
    by: str
    target: str
    nodes_integer: int
    nodes_float: int
    samples: int
    data: str
    sqnr_db: float | None
    layers: tuple[LayerReport, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    not_finite: str = ""

    @property
    def level_db(self) -> float | None:
        """`sqnr_db`, and minus infinity where the file computes what is no number."""
        return -math.inf if self.not_finite else self.sqnr_db
