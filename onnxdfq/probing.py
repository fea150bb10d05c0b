"""Runs the noise probe of `passes.noise_probe` in ONNX Runtime."""

from pathlib import Path

import onnx_ir as ir

from onnxdfq.evaluation import Session
from onnxdfq.model_file import image_input
from passes.batch_norm import read_batch_norms
from passes.noise_probe import Covariance, input_covariances, noise_fields, probe_model

PIXELS = 2**18  # of all noise together: 64 fields for small images, at least 8 for large ones
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
