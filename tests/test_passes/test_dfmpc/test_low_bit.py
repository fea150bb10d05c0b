"""Quantizers of DF-MPC against loops, enumeration, and each other."""

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest

from passes.dfmpc.low_bit import (
    RIDGE,
    LowBit,
    dorefa,
    round_by_joint_covariance,
    round_by_tap_covariance,
    rows_as_weight,
    ternary,
    ternary_of_layer,
    uniform,
    weight_rows,
    with_best_scale,
)

RNG = np.random.default_rng(3)


def test_ternary_of_a_layer_by_hand():
    rows = np.array([[1.0, -0.2, 0.6], [-0.1, -2.0, 0.3]])  # E|w| = 0.7, so the threshold is 0.49
    found = ternary_of_layer(rows)
    np.testing.assert_array_equal(found.integers, [[1, 0, 1], [0, -1, 0]])
    np.testing.assert_allclose(found.scale, [1.2, 1.2])


def test_ternary_of_an_all_zero_layer():
    found = ternary_of_layer(np.zeros((2, 3)))
    assert not found.integers.any()
    assert (found.scale > 0).all()


def test_dorefa_as_the_paper_prints_it():
    rows, bits = RNG.normal(size=(4, 50)), 3
    found = dorefa(rows, bits)
    greatest, steps = np.abs(rows).max(), 2**bits - 1
    printed = greatest * (2 / steps * np.round(steps * (rows / (2 * greatest) + 0.5)) - 1)
    np.testing.assert_allclose(found.rows, printed, atol=1e-12)
    assert set(np.unique(found.integers)) <= {-7, -5, -3, -1, 1, 3, 5, 7}


def test_dorefa_of_eight_bits_fits_no_container():
    with pytest.raises(ValueError, match="8-bit levels need integers of 9 bits"):
        dorefa(np.ones((1, 1)), 8)


def test_ternary_is_the_exact_minimum():
    for row in RNG.standard_t(3, size=(30, 5)):
        found = ternary(row[None])
        error = np.square(found.rows[0] - row).sum()
        least = min(
            np.square(row - max(row @ t, 0) / max(t @ t, 1) * t).sum()
            for t in (np.array(signs, float) for signs in product((-1, 0, 1), repeat=len(row)))
        )
        assert error == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_uniform_is_near_the_best_of_many_scales(bits):
    rows = np.concatenate([RNG.normal(size=(5, 200)), RNG.laplace(size=(5, 200)), np.zeros((1, 200))])
    found = uniform(rows, bits)
    limit = 2 ** (bits - 1) - 1
    assert np.abs(found.integers).max() <= limit
    assert (found.scale > 0).all()
    for row, mine in zip(rows, found.rows, strict=True):
        scales = np.abs(row).max() / limit * np.linspace(0.05, 1.2, 100) + 1e-9
        least = min(np.square(np.clip(np.rint(row / s), -limit, limit) * s - row).sum() for s in scales)
        assert np.square(mine - row).sum() <= 1.3 * least + 1e-12


def test_a_row_without_integers_keeps_scale_one():
    found = with_best_scale(np.array([[0.1, 0.2], [3.0, 1.0]]), np.array([[0, 0], [1, 0]], np.int8))
    np.testing.assert_allclose(found.scale, [1.0, 3.0])


def smooth(taps, alike):
    apart = np.abs(np.arange(taps)[:, None] - np.arange(taps))
    return alike**apart


def error(rows, found, matrix):
    """Variance of the error, least over the scale of each row."""
    q = found.integers.astype(float)
    return np.einsum("od,de,oe->o", rows, matrix, rows) - np.square(np.einsum("od,de,oe->o", q, matrix, rows)) / (
        np.maximum(np.einsum("od,de,oe->o", q, matrix, q), 1e-30)
    )


@pytest.mark.parametrize("bits", [2, 3])
def test_neighbours_lower_the_error_of_the_output(bits):
    rows, inputs, taps = np.random.default_rng(5).normal(size=(6, 4 * 9)), 4, 9
    block = np.stack([smooth(taps, alike) * (i + 1) for i, alike in enumerate((0.0, 0.5, 0.7, 0.9))])
    start = uniform(rows, bits)
    found = round_by_tap_covariance(rows, start, block[None].astype(np.float32), bits, 8)
    matrix = np.zeros((inputs * taps, inputs * taps))
    for i in range(inputs):
        matrix[i * taps : (i + 1) * taps, i * taps : (i + 1) * taps] = block[i]
    before, after = error(rows, start, matrix), error(rows, found, matrix)
    assert (after <= before + 1e-6).all()
    assert after.sum() < 0.9 * before.sum()
    assert np.abs(found.integers).max() <= 2 ** (bits - 1) - 1


def test_neighbours_in_a_loop_of_one_number_after_the_other():
    """Channels are independent, so one kernel after the other must give the integers that all at once gave."""
    rows, taps = RNG.normal(size=(3, 2 * 4)), 4
    block = np.stack([smooth(taps, 0.6), smooth(taps, 0.8)]).astype(np.float32)
    start = ternary(rows)
    found = round_by_tap_covariance(rows, start, block[None], 2, 1)
    for o in range(3):
        whole = start.integers[o].astype(float).reshape(2, taps)
        weight = rows[o].reshape(2, taps)
        scale = sum(weight[i] @ block[i] @ whole[i] for i in range(2)) / sum(
            whole[i] @ block[i] @ whole[i] for i in range(2)
        )
        for i in range(2):
            for k in range(taps):
                miss = block[i, k] @ (weight[i] / scale - whole[i])
                whole[i, k] = np.clip(np.rint(whole[i, k] + miss / block[i, k, k]), -1, 1)
        np.testing.assert_array_equal(found.integers[o].reshape(2, taps), whole)


def test_covariance_with_one_block_after_the_other(monkeypatch):
    """Late updates of what lies outside a block change nothing."""
    rows = RNG.normal(size=(5, 30))
    spread = RNG.normal(size=(30, 30))
    matrix = (spread @ spread.T / 30)[None].astype(np.float32)
    start = ternary(rows)
    whole = round_by_joint_covariance(rows, start, matrix, 2, 4)
    monkeypatch.setattr("passes.dfmpc.low_bit.BLOCK", 7)
    np.testing.assert_array_equal(round_by_joint_covariance(rows, start, matrix, 2, 4).integers, whole.integers)


def test_covariance_lowers_the_error_of_each_group():
    random = np.random.default_rng(5)
    rows, spread = random.normal(size=(80, 12)), random.normal(size=(2, 12, 4))
    matrix = (spread @ spread.swapaxes(1, 2)).astype(np.float32)
    start = ternary(rows)
    found = round_by_joint_covariance(rows, start, matrix, 2, 8)
    for group in range(2):
        part = slice(40 * group, 40 * group + 40)
        pieces = [LowBit(integers=one.integers[part], scale=one.scale[part]) for one in (start, found)]
        ridged = matrix[group] + float(RIDGE) * np.trace(matrix[group]) / 12 * np.eye(12)
        before, after = (error(rows[part], piece, ridged) for piece in pieces)
        assert (after <= before * (1 + 1e-5)).all()
        assert after.sum() < 0.8 * before.sum()


@pytest.mark.parametrize(
    ("op_type", "attributes", "shape", "rows"),
    [
        ("Conv", {"group": 2}, (4, 3, 2, 2), (4, 12)),
        ("ConvTranspose", {}, (3, 4, 2, 2), (4, 12)),
        ("Gemm", {"transB": 1}, (4, 3), (4, 3)),
        ("Gemm", {}, (3, 4), (4, 3)),
    ],
)
def test_rows_and_back(op_type, attributes, shape, rows):
    node = ir.node(op_type, [ir.val("x"), ir.val("w")], attributes)
    weight = RNG.normal(size=shape)
    found = weight_rows(node, weight)
    assert found.shape == rows
    np.testing.assert_array_equal(rows_as_weight(node, found, shape), weight)
    first = weight[0] if shape[0] == 4 else weight[:, 0]
    np.testing.assert_array_equal(found[0], first.reshape(-1))
