"""The image pipeline against the formulas of the public implementation."""

import math

import torch

from onnxdfq.synthesis import priors

LOW, HIGH = torch.full((1, 1, 1), -2.0), torch.full((1, 1, 1), 2.0)


def gaussian_kernel() -> torch.Tensor:
    values = [[math.exp(-(x * x + y * y) / (2 * 1.25**2)) for x in (-1, 0, 1)] for y in (-1, 0, 1)]
    kernel = torch.tensor(values)
    return kernel / kernel.sum()


def test_smoothing_is_the_3x3_gaussian_with_zero_padding() -> None:
    x = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel().expand(3, 1, 3, 3)
    expected = torch.nn.functional.conv2d(x, kernel, padding=1, groups=3)
    torch.testing.assert_close(priors.smooth(x), expected)


def test_clamp_passes_the_gradient_of_clamped_pixels() -> None:
    x = torch.tensor([[[[-5.0, 0.5, 5.0]]]], requires_grad=True)
    y = priors.clamp_straight_through(x, LOW, HIGH)
    assert y.flatten().tolist() == [-2.0, 0.5, 2.0]
    (grad,) = torch.autograd.grad((y * torch.tensor([1.0, 2.0, 3.0])).sum(), x)
    assert grad.flatten().tolist() == [1.0, 2.0, 3.0]


def test_prepare_flips_then_smooths_then_crops_then_clamps() -> None:
    canvas = 3 * torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    made = priors.prepare(canvas, (4, 4), LOW, HIGH, priors.Draw(flip=True, top=1, left=3))
    expected = priors.smooth(torch.flip(canvas, (3,)))[:, :, 1:5, 3:7].clamp(-2, 2)
    torch.testing.assert_close(made, expected)


def test_finalize_takes_the_centre() -> None:
    canvas = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = priors.smooth(canvas)[:, :, 1:5, 2:6].clamp(-2, 2)
    torch.testing.assert_close(priors.finalize(canvas, (4, 4), LOW, HIGH), expected)


def test_canvas_scales_with_the_image() -> None:
    assert [priors.canvas_extra(side) for side in (224, 352, 96, 32, 28, 8, 4, 3, 1)] == [32, 50, 14, 4, 4, 2, 2, 0, 0]


def test_draws_reach_every_crop_and_both_flips() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [priors.draw(generator, (2, 1)) for _ in range(200)]
    assert {(how.flip, how.top, how.left) for how in draws} == {
        (flip, top, left) for flip in (False, True) for top in range(3) for left in range(2)
    }
