"""Threshold and scale arithmetic of the uniform quantizer, and nothing else.

A quantizer of b bits with threshold t covers [-t, t - scale] when signed, [0, t - scale] when not, and zero is always
on the grid. Power-of-two means t = 2**k, and so scale = 2**k / 2**(b - signed). (HPTQ, arXiv 2109.09113.)
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

SMALLEST_THRESHOLD = 2.0**-16  # the floor of HPTQ's search; also keeps an all-zero tensor from a scale of zero


def integer_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Least and greatest integer of the grid."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def scale_of(threshold: ArrayLike, bits: int, *, signed: bool) -> NDArray[np.float64]:
    """The scale, in the tensor's own unit; a power of two exactly when the threshold is one. Same shape."""
    return np.asarray(threshold, np.float64) / 2.0 ** (bits - int(signed))


def covering_power_of_two(magnitude: ArrayLike) -> NDArray[np.float64]:
    """The least 2**k that is at least `magnitude`, and at least SMALLEST_THRESHOLD. Same shape."""
    # frexp instead of ceil(log2): log2 of 2**k is not exactly k on every platform
    mantissa, exponent = np.frexp(np.maximum(np.asarray(magnitude, np.float64), SMALLEST_THRESHOLD))
    return np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))


def is_power_of_two(values: ArrayLike) -> bool:
    """Whether every value is 2**k for a whole k."""
    array = np.asarray(values, np.float64)
    return bool(np.all(array > 0) and np.all(np.frexp(array)[0] == 0.5))
