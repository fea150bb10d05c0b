"""Thresholds of activations by what they cost the network's outputs, where the step is a power of two.

A threshold that is best for its own tensor keeps a few large values and rounds all others more coarsely. Between two
powers of two that doubles every step, and behind depthwise layers it costs the outputs several decibels.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.budget.sensitivity import measure_sensitivity
from onnxdfq.model_file import image_input
from onnxdfq.progress import Progress, Steps
from passes.quant_plan import QuantPlan, TensorQuant
from passes.quant_points import KNOWN_RANGE

CHANGES = (0, -1, 1)  # powers of two
WORTH = 0.8  # a change has to lower the error to this; less would follow the images at hand
LEAST_BITS = 8  # with fewer, steps are tuned together with the roundings
# Of all images together, and images: what is rare has to occur among them. (Of 256 CIFAR-size images, the first 64 lack
# the tails of the others: thresholds chosen by them lost 8 dB on all.)
PIXELS, MOST, LEAST = 2**22, 256, 8
BATCH = 64


def thresholds_by_outputs(
    model: ir.Model,
    plan: QuantPlan,
    pixels: NDArray[np.float32],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, TensorQuant]:
    """Value name → its quantization with half or twice the threshold, where that gives the outputs a smaller error.

    model: float, BatchNormalization folded; plan: with power-of-two thresholds; pixels (N, C, H, W) in the model's
    input units, of which the first are taken. One activation at a time is quantized, all else is float.
    """
    tried = {
        name: {
            change: replace(plan, activations=dict(plan.activations) | {name: quant.widened(change)})
            for change in CHANGES
        }
        for name, quant in _open(model, plan)
    }
    if not tried:
        return {}
    fixed = image_input(model).shape[0]
    count = max(min(PIXELS // pixels[0, 0].size, MOST), LEAST, fixed or 0)
    measured = measure_sensitivity(
        model,
        pixels[:count],
        weights={},
        activations=tried,
        batch_size=fixed or BATCH,
        device=device,
        step=Steps(progress, len(tried) * len(CHANGES)),
    )
    best = {name: min(losses, key=losses.__getitem__) for name, losses in measured.activations.items()}
    return {
        name: tried[name][change].activations[name]
        for name, change in best.items()
        if measured.activations[name][change] < WORTH * measured.activations[name][0]
    }


def _open(model: ir.Model, plan: QuantPlan) -> Iterator[tuple[str, TensorQuant]]:
    """Activations whose range neither an image, nor a function, nor a Clip on the integers sets; and outputs, whose
    own error is what counts, stay out."""
    for node in model.graph:
        for value in node.outputs if node.op_type not in KNOWN_RANGE else ():
            quant = plan.activations.get(value.name or "")
            if quant is None or quant.bits < LEAST_BITS or quant.clip is not None or value.is_graph_output():
                continue
            yield value.name or "", quant
