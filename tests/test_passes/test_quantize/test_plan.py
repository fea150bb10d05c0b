"""Threshold and grid arithmetic, by hand."""

import numpy as np
import pytest

from passes.quantize.grid import (
    SMALLEST_THRESHOLD,
    covering_power_of_two,
    integer_range,
    is_power_of_two,
    scale_of,
)
from passes.quantize.plan import QuantPlan, TensorQuant


def test_signed_eight_bits() -> None:
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(2.0))
    assert quant.scale == 2.0 / 128
    assert quant.range == (-128, 127)
    np.testing.assert_array_equal(quant.integers([-9.0, -2.0, 0.0, 1.0, 9.0]), [-128, -128, 0, 64, 127])
    np.testing.assert_array_equal(quant.round_trip([9.0]), [2.0 - 2.0 / 128])


def test_unsigned_four_bits() -> None:
    quant = TensorQuant(bits=4, signed=False, threshold=np.asarray(4.0))
    assert quant.scale == 0.25
    np.testing.assert_array_equal(quant.integers([-1.0, 0.3, 3.9, 4.0]), [0, 1, 15, 15])


def test_a_grid_without_sign_may_begin_below_zero() -> None:
    quant = TensorQuant(bits=4, signed=False, threshold=np.asarray(4.0), zero_point=4)
    np.testing.assert_array_equal(quant.integers([-2.0, 0.3, 2.7, 4.0]), [-4, 1, 11, 11])
    for doublings, zero_point in ((-3, 14), (-1, 8), (0, 4), (1, 2), (2, 2), (9, 2)):
        other = quant.widened(doublings)
        assert (other.scale, other.zero_point) == (quant.scale * 2.0**doublings, zero_point)
    assert TensorQuant(bits=4, signed=False, threshold=np.asarray(4.0)).widened(-1).zero_point == 0
    for signed, zero_point in ((True, 2), (False, 16), (False, -2), (False, 3)):
        with pytest.raises(ValueError, match="below zero"):
            TensorQuant(bits=4, signed=signed, threshold=np.asarray(4.0), zero_point=zero_point)


def test_rounds_half_to_even_as_onnx_does() -> None:
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(128.0))
    np.testing.assert_array_equal(quant.integers([0.5, 1.5, 2.5, -0.5, -1.5]), [0, 2, 2, 0, -2])


def test_per_channel_scales_lie_along_their_axis() -> None:
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray([1.0, 2.0]), axis=1)
    np.testing.assert_array_equal(quant.integers([[0.5, 0.5], [-1.0, -1.0]]), [[64, 32], [-128, -64]])


def test_a_clip_narrows_the_range() -> None:
    quant = TensorQuant(bits=8, signed=False, threshold=np.asarray(8.0), clip=(0, 192))
    assert quant.round_trip([7.0]) == 6.0


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.inf, np.nan])
def test_thresholds_are_positive_and_finite(threshold: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        TensorQuant(bits=8, signed=True, threshold=np.asarray(threshold))


def test_axis_and_threshold_shape_belong_together() -> None:
    with pytest.raises(ValueError, match="axis"):
        TensorQuant(bits=8, signed=True, threshold=np.ones(3))


def test_covering_power_of_two() -> None:
    found = covering_power_of_two([1.0, 1.0001, 0.9, 2.0**-10, 0.0, 3.0, 2.0**20])
    np.testing.assert_array_equal(found, [1.0, 2.0, 1.0, 2.0**-10, SMALLEST_THRESHOLD, 4.0, 2.0**20])


def test_power_of_two_is_told_exactly() -> None:
    assert is_power_of_two([0.5, 4.0, 2.0**-30])
    assert not is_power_of_two([0.5, 3.0])
    assert not is_power_of_two([0.0])


def test_ranges_and_scales() -> None:
    assert integer_range(2, signed=True) == (-2, 1)
    assert integer_range(4, signed=False) == (0, 15)
    assert scale_of(1.0, 8, signed=False) == 1 / 256


@pytest.mark.parametrize("threshold", [1e-60, 1e60])
def test_a_plan_tells_which_scale_is_no_float32(threshold: float) -> None:
    good = TensorQuant(bits=8, signed=True, threshold=np.asarray(1.0))
    bad = TensorQuant(bits=8, signed=True, threshold=np.asarray(threshold))
    assert (
        QuantPlan(activations={"a": good}, weights={"w": good}, biases={"n": np.zeros(2, np.float32)}).not_finite()
        is None
    )
    assert QuantPlan(activations={"a": good, "b": bad}, weights={}).not_finite() == "b"
    assert QuantPlan(activations={}, weights={"w": bad}).not_finite() == "w"
    biases = {"n": np.array([0, np.inf], np.float32)}
    assert QuantPlan(activations={}, weights={}, biases=biases).not_finite() == "n"
