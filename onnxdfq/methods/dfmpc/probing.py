"""Statistics of layer inputs, measured in ONNX Runtime: on noise (`passes.dfmpc.noise_probe`) or the user's images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.evaluation import Session
from onnxdfq.images.samples import Samples, SamplesLike
from onnxdfq.model_file import batch_of, main_input
from passes.dfmpc.noise_probe import Covariance, input_covariances, model_of_layer_inputs, noise_fields, probe_model
from passes.graph.batch_norm import read_batch_norms
from passes.moments.moments import Moments

PIXELS = 2**18  # in all images together; their number is PIXELS / (H · W), within the bounds below
MOST, LEAST = 64, 8  # images; the upper bound holds for noise only


def noise_covariances(model: ir.Model, path: Path, *, seed: int) -> dict[str, Covariance]:
    """The covariance of each layer's input patches, measured on noise.

    Args:
        model: Float, in canonical form, with its BatchNormalizations.
        path: Of the model's file, for error messages.
        seed: Of the noise.

    Returns:
        By layer name. Empty where the model takes no image or has no BatchNormalization, as nothing then gives the
        noise its scale.

    Raises:
        ModelFileError: ONNX Runtime cannot load the model.
        DataError: It cannot run it.
    """
    spec = main_input(model)
    if spec.image is None or not spec.is_float or not read_batch_norms(model):
        return {}
    channels, *size = spec.planes
    count = spec.batch or min(max(PIXELS // (size[0] * size[1]), LEAST), MOST)
    noise = spec.from_planes(noise_fields(count, channels, (size[0], size[1]), seed))
    session = Session(path, probe_model(model))
    values = dict(zip(session.outputs, session.run(noise), strict=True))
    return input_covariances(model, values | {spec.name: noise})


def layer_inputs_of_images(model: ir.Model, path: Path, pixels: SamplesLike) -> dict[str, NDArray[np.float32]]:
    """The values that layers read, for the first images.

    Args:
        model: Float, in canonical form, with BatchNormalizations or without.
        path: Of the model's file, for error messages.
        pixels: In the model's input units.

    Returns:
        By value name, (n, ...) float32 of the first n images: as many as the model's batch, or as make `PIXELS`.

    Raises:
        ModelFileError: ONNX Runtime cannot load the model.
        DataError: It cannot run it on these images.
    """
    samples = Samples.of(pixels)
    images = samples[: batch_of(model) or max(3 * PIXELS // samples.numbers, LEAST)]
    session = Session(path, model_of_layer_inputs(model))
    return dict(zip(session.outputs, session.run(images), strict=True)) | {session.main.name: images.main}


def channel_moments(values: Mapping[str, NDArray[np.float32]]) -> dict[str, Moments]:
    """Mean and standard deviation of each channel (axis 1) of arrays (N, C, ...), by value name."""
    moments = {}
    for name, value in values.items():
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        if value.ndim > 1:
            moments[name] = Moments(mean=value.mean(axes, dtype=np.float64), std=value.std(axes, dtype=np.float64))
    return moments
