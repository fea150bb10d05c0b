"""The rectified Adam against torch's RAdam, and the schedule by hand."""

import pytest
import torch

from onnxdfq.synthesis.optimizer import FactoredRAdam, Plateau, rectification


def test_rectification_starts_at_the_sixth_step_and_tends_to_one() -> None:
    assert [rectification(step) for step in range(1, 6)] == [0.0] * 5
    assert 0 < rectification(6) < rectification(60) < rectification(600) < 1
    assert rectification(100_000) == pytest.approx(1, abs=1e-3)


def test_steps_equal_torch_where_every_channel_is_one_pixel() -> None:
    """One pixel per channel: the second moment per channel is the second moment per pixel. bfloat16 allows 1 in 100."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(3, 4, 1, 1, generator=generator)
    theirs = ours.clone().requires_grad_()
    state, reference = FactoredRAdam(ours), torch.optim.RAdam([theirs], lr=0.1, eps=1e-20)
    for step in range(1, 40):
        grad = torch.randn(ours.shape, generator=generator) + 1
        before, expected = ours.clone(), theirs.detach().clone()
        state.update(ours, grad, 0.1)
        theirs.grad = grad
        reference.step()
        moved, wanted = ours - before, theirs.detach() - expected
        if step <= 5:
            assert not moved.any()  # torch takes a plain gradient step here
        else:
            torch.testing.assert_close(moved, wanted, rtol=0.05, atol=5e-4)


def test_second_moment_of_rank_one_is_exact_and_a_still_channel_stays() -> None:
    """Gradients whose squares are an outer product: every pixel then moves by the same step, as in RAdam itself."""
    images = torch.zeros(1, 2, 2, 3)
    state = FactoredRAdam(images)
    grad = torch.zeros_like(images)
    grad[0, 0] = torch.tensor([[1.0], [-4.0]]) * torch.tensor([1e-9, 2e-9, 3e-9])
    for _ in range(10):
        state.update(images, grad, 1.0)
    assert not images[0, 1].any()
    assert images[0, 0, 0, 0] < 0
    torch.testing.assert_close(
        images[0, 0], images[0, 0, 0, 0] * torch.tensor([[1.0], [-1.0]]).expand(2, 3), rtol=0.02, atol=0
    )


def test_plateau_halves_after_patience_and_forgets_the_best() -> None:
    schedule = Plateau(rate=8.0, patience=2)
    for loss in (1.0, 1.0, 1.0):
        schedule.observe(loss)
    assert schedule.rate == 8.0  # waited two visits: not more than the patience
    schedule.observe(1.0)
    assert schedule.rate == 4.0
    schedule.observe(5.0)  # after the halving any loss is a best one
    schedule.observe(4.0)
    schedule.observe(4.0)
    schedule.observe(4.0)
    assert schedule.rate == 4.0
    schedule.observe(3.99999)  # less than 1e-4 of itself is no progress
    assert schedule.rate == 2.0


def test_plateau_has_a_least_rate() -> None:
    schedule = Plateau(rate=1e-3, patience=0)
    for _ in range(20):
        schedule.observe(1.0)
    assert schedule.rate == 1e-4
