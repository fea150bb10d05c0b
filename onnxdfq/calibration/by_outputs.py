"""Thresholds of activations by what they cost the network's outputs.

A threshold that is best for its own tensor keeps a few large values and rounds all others more coarsely. Between two
powers of two that doubles every step, and behind depthwise layers it costs the outputs several decibels. And what an
activation function makes next to nothing of is worth no steps at all, however far below zero it reaches.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.calibration.saturation import function_behind, saturated_tail
from onnxdfq.calibration.sensitivity import measure_sensitivity
from onnxdfq.model_file import image_input
from onnxdfq.progress import Progress, Steps
from onnxdfq.recipe.choices import Scheme
from passes.graph.operators import KNOWN_RANGE
from passes.quantize.plan import QuantPlan, TensorQuant

CHANGES = (0, -1, 1)  # of the threshold, log2, halved where thresholds are free; first none
FINER = (0, -1, -2)  # of the steps, where an activation function sets the grid's lower end
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
    scheme: Scheme = "power-of-two",
    tails: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, TensorQuant]:
    """Value name → its quantization with a smaller or larger threshold, where that gives the outputs a smaller error:
    half or twice as large where thresholds are powers of two, else by the square root of 2.

    model: float, BatchNormalization folded. plan: by this scheme. pixels: (N, C, H, W) in the model's input units, of
    which the first are taken. tails: what only an activation function reads may have a grid without sign instead, begun
    where the function saturates. One activation at a time is quantized, all else is float.
    """
    unit = 0.5 if scheme == "free" else 1
    grids = {
        value.name or "": [
            *(quant.widened(change * unit) for change in CHANGES),
            *(_saturated(model, value, quant, unit) if tails else ()),
        ]
        for value, quant in _open(model, plan, scheme)
    }
    if not grids:
        return {}
    tried = {
        name: {
            index: replace(plan, activations=dict(plan.activations) | {name: grid}) for index, grid in enumerate(found)
        }
        for name, found in grids.items()
    }
    fixed = image_input(model).shape[0]
    count = max(min(PIXELS // pixels[0, 0].size, MOST), LEAST, fixed or 0)
    measured = measure_sensitivity(
        model,
        pixels[:count],
        weights={},
        activations=tried,
        batch_size=fixed or BATCH,
        device=device,
        step=Steps(progress, sum(map(len, grids.values()))),
    )
    best = {name: min(losses, key=losses.__getitem__) for name, losses in measured.activations.items()}
    return {
        name: grids[name][index]
        for name, index in best.items()
        if measured.activations[name][index] < WORTH * measured.activations[name][0]
    }


def _saturated(model: ir.Model, value: ir.Value, quant: TensorQuant, unit: float) -> Iterator[TensorQuant]:
    """Grids without sign as wide as `quant` or narrower, that begin where the function behind them saturates."""
    negative = quant.signed or quant.tail  # else a Relu may lie in the grid's end at zero
    function = function_behind(model, value) if negative else None
    if function is None:
        return
    for change in FINER:
        step = float(quant.scale) * 2.0 ** (change * unit)
        tail = saturated_tail(function, step, quant.bits)
        if tail is not None:
            yield TensorQuant(bits=quant.bits, signed=False, threshold=np.asarray(step * 2**quant.bits), tail=tail)


def _open(model: ir.Model, plan: QuantPlan, scheme: Scheme) -> Iterator[tuple[ir.Value, TensorQuant]]:
    """Activations whose range neither an image, nor a function, nor a Clip sets (on the integers, or where free grids
    have to end inside its bounds); and outputs, whose own error is what counts, stay out."""
    closed = {*KNOWN_RANGE, "Clip"} if scheme == "free" else KNOWN_RANGE.keys()
    for node in model.graph:
        for value in node.outputs if node.op_type not in closed else ():
            quant = plan.activations.get(value.name or "")
            if quant is None or quant.bits < LEAST_BITS or quant.clip is not None or value.is_graph_output():
                continue
            yield value, quant
