"""AdaRound's variable, by hand."""

import numpy as np
import pytest
import torch

from onnxdfq.tuning.rounding import WeightRounding
from passes.quantize.plan import TensorQuant

WEIGHT = np.array([[0.3, -0.7, 1.0], [5.2, -9.0, 0.26]], np.float32)
QUANT = TensorQuant(bits=3, signed=True, threshold=np.array([4.0, 8.0]), axis=0)  # steps 1 and 2, from -4 to 3


def test_soft_rounding_starts_at_the_weight_and_clips_to_the_grid() -> None:
    rounding = WeightRounding(WEIGHT, QUANT)
    # 1.0 lies on the grid and is moved a hundredth off it, so that it has a gradient; -9 lies outside
    torch.testing.assert_close(rounding().detach(), torch.tensor([[0.3, -0.7, 1.01], [5.2, -8.0, 0.26]]))


def test_hardened_is_rounded_to_where_v_points() -> None:
    rounding = WeightRounding(WEIGHT, QUANT)
    assert rounding.integers().tolist() == [[0, -1, 1], [3, -4, 0]]  # to nearest, as nothing has moved
    with torch.no_grad():
        rounding.v[0, 0], rounding.v[1, 0] = 0.1, -0.1
    rounding.harden()
    assert rounding.integers().tolist() == [[1, -1, 1], [2, -4, 0]]
    assert rounding.integers().dtype == np.int8
    assert (rounding().detach() == torch.tensor([[1.0, -1, 1], [4, -8, 0]])).all()
    assert float(rounding.penalty(20.0).detach()) == 0


def test_what_a_kernel_would_saturate_on_is_rounded_towards_zero() -> None:
    rounding = WeightRounding(WEIGHT, QUANT, saturating=lambda integers: np.abs(integers) >= 3)
    rounding.harden()
    assert rounding.integers().tolist() == [[0, -1, 1], [2, -4, 0]]  # 2.6 of 2 or 3; -4.5 clips to -4 either way


def test_penalty_is_that_of_the_paper() -> None:
    rounding = WeightRounding(
        np.array([0.5, 0.25], np.float32), TensorQuant(bits=3, signed=True, threshold=np.array(4.0))
    )
    assert float(rounding.penalty(2.0).detach()) == pytest.approx(1.0 + (1 - 0.25), rel=1e-5)


def test_gradient_is_the_step_times_that_of_h() -> None:
    rounding = WeightRounding(WEIGHT, QUANT)
    (gradient,) = torch.autograd.grad(rounding().sum(), rounding.v)
    sigmoid = torch.sigmoid(rounding.v.detach())
    expected = torch.tensor([[1.0], [2.0]]) * 1.2 * sigmoid * (1 - sigmoid)
    expected[1, 1] = 0  # clipped
    torch.testing.assert_close(gradient, expected)


def test_known_integers_are_kept_until_something_moves() -> None:
    integers = np.array([[1, -1, 2], [3, -4, -1]], np.int8)  # not the nearest ones
    rounding = WeightRounding(WEIGHT, QUANT, integers)
    assert rounding.integers().tolist() == integers.tolist()
    # half way between the integer and the float weight, which an integer and its neighbour may not reach
    torch.testing.assert_close(
        rounding().detach(), torch.tensor([[0.65, -0.85, 1.505], [5.6, -8.0, -1.01]]), atol=1e-5, rtol=0
    )
    with torch.no_grad():
        rounding.v.neg_()
    assert rounding.integers().tolist() == [[0, 0, 1], [2, -4, 0]]  # the neighbours on the float weight's side
