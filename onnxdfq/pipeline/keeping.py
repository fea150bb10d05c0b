"""What stays float for its ranges: found by calibration, before a grid is decided."""

from collections.abc import Sequence, Set
from dataclasses import replace

import onnx_ir as ir

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.methods.method import Note, Run
from onnxdfq.recipe.bits import FLOAT_BITS
from onnxdfq.shown import some
from passes.quantize.divisors import divisors_at_zero
from passes.quantize.joins import Join, joins_apart
from passes.quantize.points import find_quant_points
from passes.target.kept_float import KeptFloat
from passes.target.target import Target

NAMED = 3  # values that a note names


def kept_for_ranges(
    model: ir.Model, observations: Observations, calibration: Calibration, target: Target, run: Run
) -> Target:
    """The target with the end of the network float where parts of very different ranges are put together, and with what
    is divided by where a grid would round it to 0. A grid that a plan decides stays.

    Args:
        model: Folded.
        observations: Of its values.
        calibration: What the grids are to be.
        target: What the file is for.
        run: Told what stays float, and why.
    """
    if calibration.activation_bits == FLOAT_BITS or calibration.only_activated:
        return target
    points = find_quant_points(model, target)
    widths = calibration.activation_widths(model, points)
    free = {name: bits for name, bits in widths.items() if name not in calibration.tensors}
    seen = observations.histograms
    joins, nodes = joins_apart(model, points, {name: one.magnitude for name, one in seen.items()}, free)
    divisors = divisors_at_zero(model, points, {name: (one.least, one.greatest) for name, one in seen.items()}, free)
    if joins:
        _tell_of_joins(joins, nodes, target, run)
    if divisors:
        run.tell(
            Note(
                text=f"For the target {target.name} {some(sorted(divisors), NAMED)} stay float: they are divided by, "
                "and on a grid the least of them would be 0."
            )
        )
    kept = target.kept_float
    return replace(target, kept_float=KeptFloat(nodes=kept.nodes | nodes, values=kept.values | divisors))


def tell_of_unseen(model: ir.Model, observations: Observations, targets: Sequence[Target], run: Run) -> None:
    """What stays float because no input gave it a number. targets: those that quantize activations."""
    wanted = [name for target in targets for name in find_quant_points(model, target).activations]
    unseen = [name for name in dict.fromkeys(wanted) if name not in observations.histograms]
    if unseen:
        run.tell(
            Note(
                text=f"{some(unseen, NAMED)} hold no number on any of the inputs, as the boxes of a detector that "
                "finds nothing: what is computed on these stays float. Inputs of your own (--calibration) give them "
                "ranges."
            )
        )


def _tell_of_joins(joins: Sequence[Join], nodes: Set[str], target: Target, run: Run) -> None:
    join = joins[0]
    small, large = min(join.ranges, key=join.ranges.__getitem__), max(join.ranges, key=join.ranges.__getitem__)
    others = f", and {len(joins) - 1} more," if len(joins) > 1 else ""
    run.tell(
        Note(
            text=f"For the target {target.name} {len(nodes)} nodes behind the last layers stay float: the Concat "
            f"{join.node}{others} puts {large} (up to {join.ranges[large]:.4g}) and {small} (up to "
            f"{join.ranges[small]:.4g}) together, and on one grid next to nothing would be left of the latter."
        )
    )
