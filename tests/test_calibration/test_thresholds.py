"""The search, against exhaustive arithmetic by hand."""

import numpy as np
import pytest
import torch

from onnxdfq.calibration.histogram import Histogram
from onnxdfq.calibration.thresholds import activation_threshold, weight_thresholds
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import TensorQuant


def histogram_of(values: np.ndarray, batches: int = 1) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, batches):
        histogram.add(torch.from_numpy(part.astype("f4")))
    return histogram


def error(values: np.ndarray, threshold: float, bits: int, *, signed: bool) -> float:
    quant = TensorQuant(bits=bits, signed=signed, threshold=np.asarray(threshold))
    return float(np.square(quant.round_trip(values) - values).mean())


def test_batches_in_any_order_make_one_histogram() -> None:
    values = np.random.default_rng(0).normal(size=4000) * np.repeat([0.1, 5.0, 40.0, 1.0], 1000)
    whole, parts = histogram_of(values), histogram_of(values, 4)
    assert parts.bound == whole.bound >= np.abs(values).max()
    assert parts.counts.sum() == whole.counts.sum() == 4000
    # a value within float32 rounding of an edge may fall to either side of it, and no further
    assert np.abs(np.cumsum(parts.counts - whole.counts)).max() <= 2
    assert (parts.least, parts.greatest) == (pytest.approx(values.min()), pytest.approx(values.max()))


def test_a_histogram_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="infinite"):
        Histogram().add(torch.tensor([1.0, torch.inf]))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", ["normal", "heavy"])
def test_activation_threshold_is_the_best_power_of_two(bits: int, signed: bool, shape: str) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=20000) if shape == "normal" else random.laplace(size=20000) ** 3 / 9
    values = values if signed else np.abs(values)
    found = activation_threshold(histogram_of(values, 7), bits, "power-of-two", signed=signed, limit=None)
    errors = {k: error(values, 2.0**k, bits, signed=signed) for k in range(-12, 12)}
    assert is_power_of_two(found)
    assert found == 2.0 ** min(errors, key=errors.__getitem__)


def test_a_free_threshold_is_at_least_as_good() -> None:
    values = np.random.default_rng(2).normal(size=20000)
    histogram = histogram_of(values)
    free = activation_threshold(histogram, 4, "free", signed=True, limit=None)
    bound = activation_threshold(histogram, 4, "power-of-two", signed=True, limit=None)
    assert error(values, free, 4, signed=True) <= error(values, bound, 4, signed=True)


def test_a_limit_holds() -> None:
    values = np.full(1000, 6.0)
    assert activation_threshold(histogram_of(values), 8, "free", signed=False, limit=2.0) <= 2.0


@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_weight_thresholds_beat_their_neighbours(scheme: str, bits: int, axis: int) -> None:
    random = np.random.default_rng(3)
    scales = np.array([0.01, 1.0, 30.0]).reshape([-1 if d == axis else 1 for d in range(4)])
    weight = (random.normal(size=[3 if d == axis else 5 for d in range(4)]) * scales).astype("f4")
    found = weight_thresholds(weight, bits, scheme, axis=axis)  # type: ignore[arg-type]
    assert found.shape == (3,)
    for channel, threshold in enumerate(found):
        row = weight.take(channel, axis=axis)
        best = error(row, threshold, bits, signed=True)
        if scheme == "power-of-two":
            assert is_power_of_two(threshold)
            for factor in (0.25, 0.5, 2.0, 4.0):
                assert best <= error(row, threshold * factor, bits, signed=True) * (1 + 1e-6)
        else:
            # one step of the search grid is 1 % of the greatest magnitude
            for factor in (0.8, 1.25):
                assert best <= error(row, threshold * factor, bits, signed=True) * 1.02


def test_a_dead_channel_has_a_threshold_all_the_same() -> None:
    weight = np.zeros((2, 3, 3, 3), "f4")
    assert (weight_thresholds(weight, 8, "power-of-two", axis=0) > 0).all()
    assert (weight_thresholds(weight, 8, "free", axis=0) > 0).all()


def test_a_vector_has_one_threshold() -> None:
    assert weight_thresholds(np.ones(4, "f4"), 8, "power-of-two", axis=None).shape == ()
