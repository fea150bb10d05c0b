"""Values whose distribution does not follow from BatchNormalization: a range where their operator has one, or words."""

import math
from collections.abc import Iterator, Set

import onnx_ir as ir

from passes.graph.editing import is_op, name_of, scalar_value
from passes.graph.operators import KNOWN_RANGE
from passes.moments.spread import ABSCISSAE, Spread, erf

NORMAL_SHARE = 0.5 * (1 + erf(ABSCISSAE * math.sqrt(0.5)))  # of normal numbers below each: uniform over 0..1


def within_known_ranges(model: ir.Model, names: Set[str]) -> Iterator[tuple[str, Spread]]:
    """Distributions of values whose range their operator tells, where nothing tells more: uniform over the range.

    A grid has to hold the whole range, and no part of it is known to be used more than another: of all distributions
    on an interval the uniform one assumes the least. It serves thresholds alone. Means that would follow from it are
    guesses, and so are the ranges of what is computed from it (half of x in x · Sigmoid(g), where gates are open).
    """
    for node in model.graph:
        for value in node.outputs:
            bounds = _known_range(node) if value.name in names else None
            if bounds is not None:
                low, high = bounds
                yield name_of(value), Spread(points=low + (high - low) * NORMAL_SHARE[None], origin=name_of(value))


def _known_range(node: ir.Node) -> tuple[float, float] | None:
    if is_op(node, "Clip"):
        low, high = (scalar_value(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
        return (low, high) if low is not None and high is not None and low < high else None
    if is_op(node, "Erf", "Softsign", "Tanh"):  # not in KNOWN_RANGE: networks often use a small part of it
        return -1.0, 1.0
    return KNOWN_RANGE[node.op_type] if is_op(node, *KNOWN_RANGE) else None


def unknown(model: ir.Model, ranges: Set[str], means: Set[str]) -> str:
    """The message for the first missing value in graph order: most of the others are missing because it is."""
    lacking = {"a range": len(ranges), "means": len(means)}
    count = ", ".join(f"values without {what}: {number}" for what, number in lacking.items() if number)
    for node in model.graph:
        for value in node.outputs:
            if value.name in ranges | means:
                what = "range" if value.name in ranges else "mean of each channel"
                why = "" if value.name in ranges else " by which a bias is corrected,"
                return (
                    f"The {what} of {value.name!r}, from {node.op_type} {node.name!r},{why} does not follow from the "
                    f"batch normalizations ({count}); --method dfq needs them all. Use --method dgh, "
                    "whose images show every range and mean, or --calibration with images of your own."
                )
    what = "range" if ranges else "mean"
    return (
        f"The {what} of the input {min(ranges or means)!r} is not known; use --method dgh, or --calibration with "
        "images of your own."
    )
