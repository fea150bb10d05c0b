"""Weights with a scale for every block: nearest rounding and GPTQ."""

import numpy as np
import pytest

from passes.quantize import blocks
from passes.quantize.blocks import BlockWeight, gptq, inverse_factor, rounded

RANDOM = np.random.default_rng(0)


def dequantized(found: BlockWeight, block: int) -> np.ndarray:
    scales = np.repeat(found.scales, block, axis=0)[: len(found.integers)]
    return found.integers.astype(np.float64) * scales


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (8, 32), (3, 64)])
def test_nearest_rounding_is_within_half_a_step_or_clips(bits: int, block: int) -> None:
    weight = RANDOM.normal(size=(72, 5)).astype(np.float32)
    found = rounded(weight, bits, block)
    assert found.scales.shape == (-(-72 // block), 5) and found.integers.shape == weight.shape
    assert found.integers.min() >= -(2 ** (bits - 1)) and found.integers.max() < 2 ** (bits - 1)
    steps = np.abs(dequantized(found, block) - weight) / np.repeat(found.scales, block, axis=0)[:72]
    inside = np.abs(found.integers) < 2 ** (bits - 1) - 1
    assert steps[inside].max() <= 0.5 + 1e-4


def test_blocks_are_apart() -> None:
    weight = np.ones((32, 1), np.float32)
    weight[16:] *= 1000
    np.testing.assert_allclose(dequantized(rounded(weight, 4, 16), 16), weight, rtol=1e-6)
    assert np.array_equal(rounded(np.zeros((16, 2), np.float32), 4, 16).integers, np.zeros((16, 2)))


def test_gptq_costs_the_outputs_less_where_inputs_go_together() -> None:
    inputs = RANDOM.normal(size=(500, 8)) @ RANDOM.normal(size=(8, 64)) + 0.1 * RANDOM.normal(size=(500, 64))
    weight = RANDOM.normal(size=(64, 24)).astype(np.float32)
    exact = inputs @ weight
    errors = [
        np.square(inputs @ dequantized(found, 32) - exact).sum()
        for found in (rounded(weight, 4, 32), gptq(weight, inverse_factor(inputs.T @ inputs), 4, 32))
    ]
    assert errors[1] < 0.3 * errors[0]


def test_of_unrelated_inputs_gptq_is_nearest_rounding() -> None:
    weight = RANDOM.normal(size=(48, 6)).astype(np.float32)
    plain, made = rounded(weight, 4, 16), gptq(weight, inverse_factor(7.0 * np.eye(48)), 4, 16)
    np.testing.assert_array_equal(made.integers, plain.integers)
    np.testing.assert_array_equal(made.scales, plain.scales)


def test_rows_that_no_input_has_do_no_harm() -> None:
    weight, hessian = RANDOM.normal(size=(32, 3)).astype(np.float32), np.diag([1.0] * 16 + [0.0] * 16)
    assert np.isfinite(dequantized(gptq(weight, inverse_factor(hessian), 4, 16), 16)).all()
    assert np.isfinite(dequantized(gptq(weight, inverse_factor(np.zeros((32, 32))), 4, 16), 16)).all()


@pytest.mark.parametrize("panel", [16, 24, 96])
def test_a_hessian_is_inverted_in_its_own_memory(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = RANDOM.normal(size=(40, 72)) * np.linspace(0.1, 3, 72)
    inputs[:, 5] = 0
    hessian = inputs.T @ inputs
    expected = inverse_factor(hessian.copy())
    monkeypatch.setattr(blocks, "_PANEL", panel)
    found = inverse_factor(hessian, in_place=True)
    assert found is hessian
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())


def test_columns_are_rounded_the_same_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = RANDOM.normal(size=(90, 48)), RANDOM.normal(size=(48, 7)).astype(np.float32)
    inverse = inverse_factor(inputs.T @ inputs)
    whole = gptq(weight, inverse, 4, 16)
    monkeypatch.setattr(blocks, "COLUMNS_AT_ONCE", 3 * 48)
    parts = gptq(weight, inverse, 4, 16)
    np.testing.assert_array_equal(parts.integers, whole.integers)
    np.testing.assert_allclose(parts.scales, whole.scales, rtol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_inputs_that_are_not_finite_are_refused(broken: float) -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not finite"):
        inverse_factor(np.full((16, 16), broken))
