"""Runs the noise probe of `passes.dfmpc.noise_probe` in ONNX Runtime; and, in its place, images of the user's own."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.evaluation import Session
from onnxdfq.model_file import image_input
from passes.dfmpc.noise_probe import Covariance, input_covariances, model_of_layer_inputs, noise_fields, probe_model
from passes.graph.batch_norm import read_batch_norms
from passes.moments.moments import Moments

PIXELS = 2**18  # of all noise or images together: of noise 64 fields at most, of either 8 at least
MOST, LEAST = 64, 8
FREE_SIDE = 64  # of the noise where the model takes images of any size


def probed_covariances(model: ir.Model, path: Path, *, seed: int) -> dict[str, Covariance]:
    """By layer name, how what the filters of `model` see varies together, as noise shows it.

    model: float, in canonical form, BatchNormalizations in place. path: what errors call it. Empty for a model whose
    input is no image, or which has no BatchNormalization: nothing there would give the noise its scale. Raises
    ModelFileError, DataError.
    """
    spec = image_input(model)
    if len(spec.shape) != 4 or not read_batch_norms(model):
        return {}
    _, channels, height, width = spec.shape
    size = (height or FREE_SIDE, width or FREE_SIDE)
    count = spec.shape[0] or min(max(PIXELS // (size[0] * size[1]), LEAST), MOST)
    noise = noise_fields(count, channels or 3, size, seed)
    session = Session(path, probe_model(model))
    values = dict(zip(session.outputs, session.run(noise), strict=True))
    return input_covariances(model, values | {spec.name: noise})


def layer_inputs_of_images(model: ir.Model, path: Path, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What layers read, by value name, for the first images.

    model: float, in canonical form, with BatchNormalizations or without. path: what errors call it. pixels:
    (N, C, H, W) in the model's input units. Raises ModelFileError, DataError.
    """
    name = image_input(model).name
    images = pixels[: image_input(model).shape[0] or max(PIXELS // pixels[0, 0].size, LEAST)]
    session = Session(path, model_of_layer_inputs(model))
    return dict(zip(session.outputs, session.run(images), strict=True)) | {name: images}


def channel_moments(values: Mapping[str, NDArray[np.float32]]) -> dict[str, Moments]:
    """Mean and deviation of each channel (axis 1), by value name."""
    moments = {}
    for name, value in values.items():
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        if value.ndim > 1:
            moments[name] = Moments(mean=value.mean(axes, dtype=np.float64), std=value.std(axes, dtype=np.float64))
    return moments
