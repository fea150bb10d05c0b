"""ACIQ's clipping values, against samples of the distributions that they are made for, and the choices of clipping."""

import math

import numpy as np
import pytest
import torch

from onnxdfq.calibration.aciq import LAPLACE, clipping_values
from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_threshold, weight_thresholds
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import TensorQuant

RNG = np.random.default_rng(4)
NORMAL, LAPLACIAN = RNG.normal(size=100_000) * 0.7, RNG.laplace(size=100_000) * 0.7


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(torch.from_numpy(values.astype("f4")))
    return histogram


def error(values: np.ndarray, threshold: float, bits: int, *, signed: bool) -> float:
    quant = TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold))
    return float(np.square(quant.round_trip(values) - values).mean())


@pytest.mark.parametrize("bits", LAPLACE)
def test_laplace_table_fulfils_the_papers_condition(bits: int) -> None:
    """Eq. of the optimum: the clipped tail's gain, 2 b exp(-a / b), equals the steps' loss, 2 a / (3 * 4^bits)."""
    a = LAPLACE[bits]
    assert 2 * math.exp(-a) == pytest.approx(2 * a / (3 * 4**bits), rel=0.02)


def test_moments_by_hand() -> None:
    points, counts = np.array([-1.0, 3.0]), np.array([1.0, 1.0])  # mean 1, absolute and standard deviation 2
    found = clipping_values(points, counts, 4, signed=True)
    assert found is not None
    assert found.tolist() == pytest.approx([1 + 2 * 5.03, 1 + 2 * 2.55])
    found = clipping_values(points, counts, 4, signed=False)  # of the 3 alone, with the steps of 5 bits
    assert found is not None
    assert found.tolist() == pytest.approx([3 * 6.2, 3 * 2.93])
    assert clipping_values(points, counts, 16, signed=True) is None


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("values", [NORMAL, LAPLACIAN], ids=["normal", "laplace"])
def test_clipping_is_near_the_best(values: np.ndarray, bits: int, signed: bool) -> None:
    values = values if signed else np.maximum(values, 0)
    histogram = histogram_of(values)
    found = activation_threshold(histogram, bits, "free", signed=signed, limit=None, clipping="aciq")
    best = activation_threshold(histogram, bits, "free", signed=signed, limit=None)
    assert error(values, found, bits, signed=signed) < 1.35 * error(values, best, bits, signed=signed)
    rounded = activation_threshold(histogram, bits, "power-of-two", signed=signed, limit=None, clipping="aciq")
    both = clipping_values(*histogram.points(), bits, signed=signed)
    assert both is not None
    assert rounded in 2.0 ** np.rint(np.log2(both))


def test_at_16_bits_nothing_is_cut() -> None:
    histogram = histogram_of(np.array([-5.0, 0.1, 3.0]))
    assert activation_threshold(histogram, 16, "power-of-two", signed=True, limit=None, clipping="aciq") == 8


def test_max_cuts_nothing() -> None:
    values = np.array([-0.5] * 10_000 + [5.0])
    histogram = histogram_of(values)
    assert activation_threshold(histogram, 4, "power-of-two", signed=True, limit=None, clipping="max") == 8
    free = activation_threshold(histogram, 4, "free", signed=True, limit=None, clipping="max")
    assert free - free / 8 <= 5.0 + 1e-6 <= free + 1e-6
    assert activation_threshold(histogram, 4, "power-of-two", signed=True, limit=None) < 8


@pytest.mark.parametrize("clipping", ["aciq", "max"])
@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
def test_weights(clipping: str, scheme: str) -> None:
    rows = np.stack([NORMAL[:3000], LAPLACIAN[:3000], np.full(3000, 0.25), np.zeros(3000)]).astype("f4")
    found = weight_thresholds(rows, 4, scheme, axis=0, clipping=clipping)  # type: ignore[arg-type]
    assert found.shape == (4,)
    assert (found > 0).all()
    if scheme == "power-of-two":
        assert is_power_of_two(found)
    for row, threshold in zip(rows[:3], found[:3], strict=True):
        if clipping == "max":
            quant = TensorQuant(bits=4, signed=True, threshold=np.asarray(threshold))
            assert np.abs(quant.round_trip(row) - row).max() <= float(quant.scale) / 2 + 1e-6
    if clipping == "aciq" and scheme == "free":
        best = weight_thresholds(rows, 4, scheme, axis=0)
        for row, threshold, least in zip(rows[:2], found[:2], best[:2], strict=True):
            assert error(row, threshold, 4, signed=True) < 1.35 * error(row, least, 4, signed=True)
