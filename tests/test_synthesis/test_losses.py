"""Each form of the losses by hand."""

import math

import pytest
import torch

from onnxdfq.synthesis.losses import image_prior, output_ranges, statistics_loss, stretching_loss
from onnxdfq.synthesis.statistics import Targets

# Two layers, of one and of two channels; running variances 4 and (1, 1). The set is off by a mean of 2 in the first
# channel, and has variance 9 instead of 1 in the last.
TARGETS = Targets.of([torch.zeros(1), torch.zeros(2)], [torch.tensor([4.0]), torch.ones(2)])
MOMENTS = torch.tensor([[2.0, 0.0, 0.0], [8.0, 1.0, 9.0]])
PIXELS = torch.tensor([[0.5, 0.0], [1.25, 4.0]])  # means .5 and 0, deviations 1 and 2: prior .25 + 1


def test_image_prior_by_hand() -> None:
    assert image_prior(PIXELS[0], PIXELS[1]).item() == pytest.approx(1.25, rel=1e-5)


def test_statistics_loss_of_the_paper_sums_squares_on_variances() -> None:
    assert statistics_loss("paper", TARGETS, MOMENTS, PIXELS).item() == pytest.approx(2**2 + (9 - 1) ** 2)


def test_statistics_loss_of_the_public_code_averages_layers_on_deviations() -> None:
    expected = (2**2 / 1 + (3 - 1) ** 2 / 2 + 1.25) / 3
    assert statistics_loss("public", TARGETS, MOMENTS, PIXELS).item() == pytest.approx(expected, rel=1e-5)


def test_relative_statistics_loss_has_no_unit() -> None:
    expected = (2**2 / 4 + (3 - 1) ** 2 / 2 + 1.25) / 3
    assert statistics_loss("relative", TARGETS, MOMENTS, PIXELS).item() == pytest.approx(expected, rel=1e-5)
    unit = 1000.0
    scaled = Targets.of([torch.zeros(1), torch.zeros(2)], [unit**2 * var for var in TARGETS.layers(TARGETS.var)])
    moments = MOMENTS * torch.tensor([[unit], [unit**2]])
    assert statistics_loss("relative", scaled, moments, PIXELS).item() == pytest.approx(expected, rel=1e-5)


def test_ranges_of_outputs_of_any_shape() -> None:
    logits = torch.tensor([[1.0, 4.0], [0.0, -2.0]])
    feature_map = torch.arange(16.0).view(2, 2, 2, 2)
    scalar = torch.tensor([[3.0], [4.0]])
    ranges = output_ranges([logits, feature_map, scalar])
    assert ranges.tolist() == [[3.0, 2.0], [7.0, 7.0], [0.0, 0.0]]


def test_stretching_loss_by_hand() -> None:
    outputs = [torch.tensor([[1.0, 4.0], [0.0, -2.0]]), torch.tensor([[0.0, 1.0], [0.0, 5.0]])]  # ranges 3 2, 1 5
    slack = torch.tensor([[1.0, 0.0], [0.5, 2.5]])
    assert stretching_loss("public", outputs, slack).item() == pytest.approx(-(3 + 2) / 2 - (1 + 5) / 2)
    paper = -(9 + 4) / 2 - (1 + 25) / 2 + (1.5 + 2.5) / 2
    assert stretching_loss("paper", outputs, slack).item() == pytest.approx(paper)
    relative = -(math.log(3) + math.log(2)) / 2 - (math.log(1) + math.log(5)) / 2
    assert stretching_loss("relative", outputs, slack).item() == pytest.approx(relative)


def test_stretching_a_constant_output_gives_no_nan() -> None:
    outputs = torch.zeros(2, 3, requires_grad=True)
    loss = stretching_loss("relative", [outputs], torch.zeros(2, 2))
    (grad,) = torch.autograd.grad(loss, outputs)
    assert torch.isfinite(grad).all()
