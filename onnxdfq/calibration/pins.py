"""Whether a grid that somebody decided is one that a target takes."""

import numpy as np
import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.recipe.tensors import TensorPin
from passes.graph.editing import initializer_array
from passes.quantize.grid import is_power_of_two
from passes.quantize.points import WeightUse
from passes.target.target import Target


def check_pinned_activation(name: str, pin: TensorPin, bits: int, target: Target) -> None:
    """Raises InputError where the target has no such grid of an activation. bits: where the pin says none."""
    width = pin.bits or bits
    container = target.activation_container(width, signed=pin.signed)
    problem = None
    if len(pin.threshold) > 1:
        problem = f"has {len(pin.threshold)} thresholds, and activations have one each"
    elif width not in target.activation_bits:
        problem = f"has {width} bits, and {target.title} takes activations of {_listed(target.activation_bits)}"
    elif container == "none":
        problem = f"has no sign, and {target.title} takes only grids with one"
    elif pin.zero_point and target.zero_points != "any":
        problem = f"begins {pin.zero_point} steps below zero, and {target.title} has no zero points for that"
    elif pin.zero_point >= 2**width:
        problem = f"begins {pin.zero_point} steps below zero, and {width} bits have {2**width - 1}"
    _refuse(name, problem or _unfit_scale(pin, target))


def check_pinned_weight(use: WeightUse, pin: TensorPin, model: ir.Model, target: Target) -> None:
    """Raises InputError where the target has no such grid of a weight."""
    shape = initializer_array(model.graph, use.initializer).shape
    channels = 1 if use.axis is None else shape[use.axis]
    problem = None
    if not pin.signed:
        problem = "is to have a grid without sign, and weights lie around 0"
    elif pin.bits is not None and pin.bits not in target.weight_bits:
        problem = f"has {pin.bits} bits, and {target.title} takes weights of {_listed(target.weight_bits)}"
    elif len(pin.threshold) not in (1, channels):
        problem = f"has {len(pin.threshold)} thresholds, and its output channels are {channels}"
    elif len(pin.threshold) > 1 and not target.per_channel_weights:
        problem = f"has a threshold for each channel, and {target.title} takes one for the whole tensor"
    _refuse(use.initializer, problem or _unfit_scale(pin, target))


def _unfit_scale(pin: TensorPin, target: Target) -> str | None:
    if target.power_of_two and not is_power_of_two(np.asarray(pin.threshold)):
        return f"has a threshold that is no power of two, and {target.title} takes no other"
    return None


def _refuse(name: str, problem: str | None) -> None:
    if problem is not None:
        raise InputError(f"The plan does not suit the target: the tensor {name!r} {problem}.", field="plan")


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) + " bits"
