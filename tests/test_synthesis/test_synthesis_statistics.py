"""Moments by hand and against autograd; the aggregate against all images at once."""

import pytest
import torch

from onnxdfq.synthesis.statistics import Aggregate, Targets, centred_moments, image_moments, spread


def test_moments_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])  # (2, 1, 2): 1 3 5 7
    first, second = centred_moments(x, torch.tensor([2.0]))  # -1 1 3 5
    assert first.item() == 2.0
    assert second.item() == (1 + 1 + 9 + 25) / 4
    assert spread(first, second).item() == pytest.approx(5**0.5, rel=1e-6)  # variance of 1 3 5 7


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (4, 3, 6, 8), (2, 3, 2, 4, 2), (64, 16, 8, 8), (3, 700, 3, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_and_gradient_equal_autograd(shape: tuple[int, ...], channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    centre = torch.randn(shape[1], generator=generator)
    weights = torch.randn((2, shape[1]), generator=generator)
    first, second = centred_moments(x, centre)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    shifted = x.double() - centre.double().view(1, -1, *[1] * (len(shape) - 2))
    expected = shifted.mean(axes), shifted.square().mean(axes)
    torch.testing.assert_close(first.double(), expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second.double(), expected[1], rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad((weights * torch.stack([first, second])).sum(), x)
    (wanted,) = torch.autograd.grad((weights * torch.stack(expected)).sum(), x)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-4, atol=1e-7)


def test_moments_of_bfloat16_are_float32_and_do_not_cancel() -> None:
    x = (100 + torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    first, second = centred_moments(x, torch.full((4,), 100.0))
    assert first.dtype == second.dtype == torch.float32
    exact = x.detach().double()
    torch.testing.assert_close((second - first**2).double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)
    (grad,) = torch.autograd.grad(second.sum(), x)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), 2 * (x.detach().float() - 100) / 4096, rtol=0.02, atol=2e-5)


def test_image_moments_are_those_of_each_image() -> None:
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([0.5, -1.0])
    first, second = image_moments(x, centre)
    for index in range(3):
        alone = centred_moments(x[index : index + 1], centre)
        torch.testing.assert_close((first[index], second[index]), alone)
    assert image_moments(torch.ones(3, 2), centre)[0].tolist() == [[0.5, 2.0]] * 3


def test_aggregate_equals_the_moments_of_all_images_with_a_smaller_last_batch() -> None:
    sizes = [4, 4, 3]
    x = torch.randn(11, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    centre = torch.randn(5, generator=torch.Generator().manual_seed(1))
    aggregate = Aggregate(sizes, 5, torch.device("cpu"))
    for index, batch in enumerate(torch.split(x, sizes)):
        aggregate.store(index, torch.randn(2, 5))  # what a batch had before must leave no trace
        aggregate.store(index, torch.stack(centred_moments(batch, centre)))
    torch.testing.assert_close(aggregate.total(), torch.stack(centred_moments(x, centre)))


def test_aggregate_with_a_batch_replaced_carries_gradient_through_it_alone() -> None:
    sizes = [4, 4, 3]
    x = torch.randn(11, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    centre = torch.zeros(5)
    batches = list(torch.split(x, sizes))
    aggregate = Aggregate(sizes, 5, torch.device("cpu"))
    for index, batch in enumerate(batches):
        aggregate.store(index, torch.stack(centred_moments(batch, centre)))
    batches[1] = (batches[1] * 2 + 1).requires_grad_()
    whole = aggregate.with_batch(1, torch.stack(centred_moments(batches[1], centre)))
    everything = torch.cat(batches)
    torch.testing.assert_close(whole, torch.stack(centred_moments(everything, centre)))
    (grad,) = torch.autograd.grad(whole.sum(), batches[1], retain_graph=True)
    (wanted,) = torch.autograd.grad(torch.stack(centred_moments(everything, centre)).sum(), batches[1])
    torch.testing.assert_close(grad, wanted)


def test_distance_by_hand() -> None:
    targets = Targets.of(
        [torch.tensor([0.0]), torch.tensor([1.0, 2.0])], [torch.tensor([4.0]), torch.tensor([1.0, 1.0])]
    )
    first = torch.tensor([2.0, 0.0, 0.0])  # off by one deviation in the first layer
    second = torch.tensor([8.0, 1.0, 9.0])  # variances 4, 1, 9: the last deviation is 3 instead of 1
    assert targets.distance(first, second).item() == pytest.approx((1 + (0 + 4) / 2) / 2, rel=1e-4)


def test_a_dead_channel_does_not_rule_the_distance() -> None:
    targets = Targets.of([torch.zeros(4)], [torch.tensor([1.0, 1.0, 1.0, 0.0])])
    first = torch.tensor([0.0, 0.0, 0.0, 0.01])
    assert targets.distance(first, targets.var + first**2).item() < 0.01
