"""A BatchNormalization of four channels that every graph here begins with, and many samples of what it gives."""

import numpy as np

from passes.moments.moments import activation_moments

RNG = np.random.default_rng(11)
BETA = np.array([0.3, -1.2, 2.0, 0.0], np.float32)
GAMMA = np.array([1.0, -0.5, 0.7, 2.0], np.float32)
NORM = {
    "s": GAMMA,
    "t": BETA,
    "m": np.array([1, 2, 3, 4], np.float32),
    "v": np.array([4, 1, 9, 2], np.float32),
}
BN = "BatchNormalization <epsilon = 0.0> (x, s, t, m, v)"


def samples(beta=BETA, gamma=GAMMA, count=400_000):
    return beta[:, None] + np.abs(gamma)[:, None] * RNG.normal(size=(len(beta), count))


def moments_of(build, body, outputs="float[N,4,6,6] y", **weights):
    return activation_moments(build(f"(float[N,4,6,6] x) => ({outputs}) {{ b = {BN} {body} }}", **NORM, **weights))
