"""The losses of DeepInversion and MixMix, each by its formula, and the mixing of images."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from onnxdfq.methods.mixmix.losses import L2, TV, Balance, label_loss, prior_loss, statistics_loss
from onnxdfq.methods.mixmix.search import rate_at
from onnxdfq.synthesis.mixing import Box, draw_box, mixed
from onnxdfq.synthesis.statistics import Targets

MEANS, VARIANCES = [np.array([1.0, -2.0]), np.array([0.5, 0.0, 3.0])], [np.array([4.0, 1.0]), np.array([0.5, 2.0, 9.0])]
FOUND_MEANS = [np.array([1.5, -2.5]), np.array([0.5, 1.0, 0.0])]
FOUND_VARIANCES = [np.array([2.0, 1.5]), np.array([1.0, 2.0, 4.0])]


def targets_and_moments() -> tuple[Targets, torch.Tensor]:
    """Two layers of 2 and 3 channels; moments are centred at the running means."""
    targets = Targets.of(*([torch.tensor(part).float() for part in parts] for parts in (MEANS, VARIANCES)))
    error = np.concatenate(FOUND_MEANS) - np.concatenate(MEANS)
    second = np.concatenate(FOUND_VARIANCES) + error**2
    return targets, torch.tensor(np.stack([error, second])).float()


def test_norms_of_errors_as_deepinversion_has_them() -> None:
    targets, moments = targets_and_moments()
    expected = 0.0
    for weight, mean, variance, found, spread in zip(
        (10, 1), MEANS, VARIANCES, FOUND_MEANS, FOUND_VARIANCES, strict=True
    ):
        expected += weight * (np.linalg.norm(found - mean) + np.linalg.norm(spread - variance))
    assert float(statistics_loss("norm", targets, moments, 10.0)) == pytest.approx(expected, rel=1e-5)


def test_relative_errors_do_not_know_the_unit() -> None:
    targets, moments = targets_and_moments()
    expected = 0.0
    for weight, mean, variance, found, spread in zip(
        (10, 1), MEANS, VARIANCES, FOUND_MEANS, FOUND_VARIANCES, strict=True
    ):
        parts = (found - mean) / variance**0.5, (spread - variance) / variance
        expected += weight * sum(float(np.sqrt(np.mean(part**2))) for part in parts) / 2
    assert float(statistics_loss("relative", targets, moments, 10.0)) == pytest.approx(expected, rel=1e-5)
    larger = Targets.of(
        [255 * torch.tensor(mean).float() for mean in MEANS],
        [255**2 * torch.tensor(variance).float() for variance in VARIANCES],
    )
    unit = torch.tensor([[255.0], [255.0**2]])
    for form in ("relative", "kl"):
        one, other = (statistics_loss(form, t, m, 10.0) for t, m in ((targets, moments), (larger, moments * unit)))  # type: ignore[arg-type]
        assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_divergence_of_gaussians_as_in_knowledge_within() -> None:
    targets, moments = targets_and_moments()
    layers = []
    for mean, variance, found, spread in zip(MEANS, VARIANCES, FOUND_MEANS, FOUND_VARIANCES, strict=True):
        gaussians = (
            torch.distributions.Normal(torch.tensor(centre), torch.tensor(square).sqrt())
            for centre, square in ((found, spread), (mean, variance))
        )
        layers.append(torch.distributions.kl_divergence(*gaussians).mean())
    expected = float((3 * layers[0] + layers[1]) / 2)
    assert float(statistics_loss("kl", targets, moments, 3.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["relative", "norm", "kl"])
def test_statistics_that_are_met_cost_nothing_and_have_no_slope_of_nan(form: str) -> None:
    targets, _ = targets_and_moments()
    moments = torch.stack([torch.zeros(5), targets.var]).requires_grad_()
    loss = statistics_loss(form, targets, moments, 10.0)  # type: ignore[arg-type]
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    (slope,) = torch.autograd.grad(loss, moments)
    assert slope.isfinite().all()


def test_total_variation_and_size_by_hand() -> None:
    image = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    rows, columns = math.hypot(1 - 2, 4 - 8), math.hypot(1 - 4, 2 - 8)
    variation = rows + columns + abs(4 - 2) + abs(1 - 8)
    size = math.sqrt(1 + 4 + 16 + 64)
    expected = TV * variation + L2 * size
    assert float(prior_loss(image)) == pytest.approx(expected, rel=1e-6)
    assert float(prior_loss(image.repeat(5, 1, 1, 1))) == pytest.approx(expected, rel=1e-6)  # whatever the batch


def test_mixed_labels_share_the_cross_entropy_as_the_box_does() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]])
    labels, partners = torch.tensor([0, 2]), torch.tensor([1, 0])
    logs = scores.log_softmax(1)
    expected = -(0.7 * (logs[0, 0] + logs[1, 2]) + 0.3 * (logs[0, 2] + logs[1, 0])) / 2
    assert float(label_loss(scores, labels, partners, 0.3)) == pytest.approx(float(expected), rel=1e-6)
    assert float(label_loss(scores, labels, partners, 0.0)) == pytest.approx(
        float(functional.cross_entropy(scores, labels))
    )


def test_the_whole_second_image_lies_in_the_box() -> None:
    images = torch.rand(3, 2, 8, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    partners, box = torch.tensor([1, 2, 0]), Box(top=2, bottom=6, left=5, right=10)
    found, share = mixed(images, partners, box)
    assert share == 4 * 5 / 80
    small = functional.interpolate(images[partners], size=(4, 5), mode="bilinear", antialias=True)
    assert torch.allclose(found[:, :, 2:6, 5:10], small)
    outside = torch.ones(8, 10, dtype=torch.bool)
    outside[2:6, 5:10] = False
    assert torch.equal(found[:, :, outside], images[:, :, outside])
    (slope,) = torch.autograd.grad(found[0, :, 2:6, 5:10].sum(), images)
    assert (slope[1] > 0).all() and not slope[0].any() and not slope[2].any()  # each pixel of the partner, and no other


def test_boxes_are_uniform_and_cut_off_at_the_border() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = [draw_box(20, 30, generator) for _ in range(3000)]
    for box in boxes:
        assert 0 <= box.top <= box.bottom <= 20 and 0 <= box.left <= box.right <= 30
        assert box.share(20, 30) == (box.bottom - box.top) * (box.right - box.left) / 600
    # of a side u about v, both uniform on 0..1, 1/2 - E[u²] / 4 = 5/12 is left in the mean
    assert np.mean([box.bottom - box.top for box in boxes]) == pytest.approx(20 * 5 / 12, rel=0.05)
    assert np.mean([box.right - box.left for box in boxes]) == pytest.approx(30 * 5 / 12, rel=0.05)
    images = torch.rand(2, 1, 20, 30)
    empty, share = mixed(images, torch.tensor([1, 0]), Box(top=3, bottom=3, left=0, right=9))
    assert share == 0 and torch.equal(empty, images)


def test_learned_weights_go_to_one_over_their_loss() -> None:
    balance = Balance([1.0, 0.05, 0.0], learned=True)
    assert balance.weights == pytest.approx([1, 0.05, 0])
    for _ in range(200):
        balance.learn([4.0, 0.5, 7.0], 0.05)
    assert balance.weights == pytest.approx([1 / 4, 2, 0], rel=0.05)
    fixed = Balance([1.0, 0.05, 0.0], learned=False)
    fixed.learn([4.0, 0.5, 7.0], 0.02)
    assert fixed.weights == pytest.approx([1, 0.05, 0])


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    rates = [rate_at(step, 2000) for step in range(2000)]
    assert rates[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert rates[100] == 1 and rates[1050] == pytest.approx(0.5) and rates[-1] < 1e-5
    assert all(one > other for one, other in pairwise(rates[100:]))
    assert rate_at(0, 1) == 1
