"""More images of the kind of those that are there, for a network that is to agree with another on more than these."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from onnxdfq.images.samples import Samples
from onnxdfq.model_file import InputSpec
from onnxdfq.synthesis.dead_leaves import dead_leaves

MOST_BYTES = 2**28


def scenes_like(samples: Samples, spec: InputSpec, count: int, *, seed: int) -> Samples:
    """Dead leaves whose channels have the mean, the deviation and the bounds of given images; other inputs repeat.

    Args:
        samples: (N, ...) of the model's inputs.
        spec: Of the main input, which takes images of floats.
        count: How many at most; fewer where these would take more than `MOST_BYTES`.
        seed: Of the leaves.
    """
    channels, height, width = spec.planes
    count = max(1, min(count, MOST_BYTES // (4 * math.prod(spec.planes))))
    drawn = dead_leaves(count, channels, height, width, seed=seed)
    given = samples.main if spec.image == "first" else samples.main.transpose(0, 3, 1, 2)
    moved = (drawn - _of_channels(drawn, np.mean)) / _of_channels(drawn, np.std) * _of_channels(given, np.std)
    moved = np.clip(moved + _of_channels(given, np.mean), _of_channels(given, np.min), _of_channels(given, np.max))
    rows = np.arange(count) % len(samples)
    return Samples(
        main=spec.from_planes(moved.astype(np.float32)),
        others={name: array[rows] for name, array in samples.others.items()},
    )


def _of_channels(
    planes: Float32[NDArray[np.float32], "n c h w"], of: Callable[..., Any]
) -> Float32[NDArray[np.float32], "1 c 1 1"]:
    return np.asarray(of(planes, axis=(0, 2, 3), keepdims=True), np.float32)
