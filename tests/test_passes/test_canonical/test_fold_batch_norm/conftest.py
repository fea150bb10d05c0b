"""What the tests of FoldBatchNorm share."""

import numpy as np

RNG = np.random.default_rng(2)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def statistics(channels):
    return {"s": rand(channels), "t": rand(channels), "m": rand(channels), "v": np.abs(rand(channels)) + 0.1}


def unshifting(channels):
    """A normalization that maps zero to zero."""
    return statistics(channels) | {"t": np.zeros(channels, np.float32), "m": np.zeros(channels, np.float32)}
