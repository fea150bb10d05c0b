"""What a job's recipe makes of calibration and tuning."""

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.pipeline.job import Job
from onnxdfq.recipe.bits import WEIGHT_BITS, Bits
from onnxdfq.recipe.recipe import DFMPC
from onnxdfq.tuning.tuning import Tuning, tuning_for


def calibration_of(job: Job) -> Calibration:
    """How thresholds are decided."""
    recipe, bits = job.recipe, Bits.parse(job.recipe.bits)
    return Calibration(
        weight_bits=bits.weight,
        activation_bits=bits.activation,
        scheme=recipe.scheme,
        clipping=recipe.clipping,
        shift_negative=recipe.shift_negative,
        layer_bits=job.pins,
    )


def tuning_of(job: Job) -> Tuning | None:
    """How what is rounded is tuned, if it is."""
    recipe = job.recipe
    if job.by_batch_norm:
        return None
    asked = [Bits.parse(recipe.bits).weight, *(pin.weight for pin in job.pins.values() if pin.weight is not None)]
    return tuning_for(
        "none" if recipe.tuning is None and recipe.method == DFMPC else recipe.tuning,  # it has repaired its weights
        weight_bits=min(asked) if recipe.budget is None else min(WEIGHT_BITS),
        learn_scales=recipe.scheme == "free",
        effort=recipe.effort,
    )
