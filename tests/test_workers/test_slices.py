"""A batch in slices: what is added over them does not depend on who looks at them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnxdfq.training.loop import Group, Loop, Training
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.slices import SharedOutOfMemory, Slices, is_out_of_memory

Together = Callable[..., list[Any]]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
X = torch.linspace(-1, 2, 32)


class Curve(nn.Module):
    """y = a x + b x^2, to be fitted to a sine; one parameter more is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.1])), nn.Parameter(torch.tensor([[0.2]]))
        self.unread = nn.Parameter(torch.ones(3))

    def loss(self, x: Tensor) -> Tensor:
        return (self.a * x + self.b[0] * x.square() - x.sin()).square().mean()

    def losses(self, slices: Slices, x: Tensor) -> Iterator[Tensor]:
        return (slices.share(rows) * self.loss(x[rows]) for rows in slices.own)


@pytest.mark.parametrize(("size", "wanted"), [(10, 4), (8, 2), (3, 5), (7, 1)])
def test_a_batch_is_cut_into_slices_of_nearly_one_size(size: int, wanted: int) -> None:
    slices = Slices(size=size, wanted=wanted)
    expected = torch.arange(size).tensor_split(min(size, wanted))
    assert [torch.arange(size)[rows].tolist() for rows in slices.rows] == [part.tolist() for part in expected]
    assert sum(map(slices.share, slices.rows)) == pytest.approx(1)


def test_the_gradient_of_slices_is_that_of_the_batch() -> None:
    found = []
    for count in (1, 3):
        curve, slices = Curve(), Slices(size=len(X), wanted=count)
        loss = slices.backward(curve.losses(slices, X), list(curve.parameters()))
        assert curve.a.grad is not None and curve.b.grad is not None and curve.unread.grad is None
        assert curve.b.grad.shape == (1, 1) and not loss.requires_grad
        found.append([loss.item(), curve.a.grad.item(), curve.b.grad.item()])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_batch_that_is_not_cut_may_have_a_loss_of_several_parts() -> None:
    curve = Curve()
    loss = Slices(size=len(X)).backward([torch.stack([curve.loss(X), 2 * curve.loss(X)])], list(curve.parameters()))
    assert loss.tolist() == pytest.approx([curve.loss(X).item(), 2 * curve.loss(X).item()])


def test_sums_are_in_the_order_of_the_slices(together: Together) -> None:
    """In the order of two workers, first and last before the one between, they would come to 1."""

    def work(workers: Workers) -> float:
        slices = Slices(size=3, wanted=3, workers=workers)
        return float(slices.added(torch.tensor([[1e8], [1.0], [-1e8]])[rows.start] for rows in slices.own))

    assert [*together(2, work), work(ALONE)] == [0.0] * 3


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_workers_comes_to_the_same_gradient(size: int, together: Together) -> None:
    """Three slices: of two workers one looks at two of them, of four the last at none."""

    def work(workers: Workers) -> list[list[float] | None]:
        curve, slices = Curve(), Slices(size=len(X), wanted=3, workers=workers)
        assert len(slices.own) == (3 if workers is ALONE else len(range(workers.rank, 3, size)))
        loss = slices.backward(curve.losses(slices, X), list(curve.parameters()))
        slopes = [None if each.grad is None else each.grad.flatten().tolist() for each in curve.parameters()]
        return [[loss.item()], *slopes]

    assert together(size, work) == [work(ALONE)] * size


def trained(workers: Workers, checkpoint: Checkpoint | None = None, last: int = 20) -> tuple[Training, list[float]]:
    """With gradients from slices of its own, and a held-back loss that only rank 0 knows."""
    curve = Curve()

    def losses(index: Tensor, step: int, slices: Slices) -> Iterator[Tensor]:
        if step > last:
            raise MemoryError
        yield from curve.losses(slices, X[index])

    training = Loop(steps=20, batch_size=10, looks=4, slices=3).run(
        [Group(parameters=list(curve.parameters()), rate=0.05, weight_decay=0.1)],
        losses,
        len(X),
        held_back=lambda: curve.loss(X).item() + 1e6 * workers.rank,
        state=curve,
        seed=0,
        checkpoint=checkpoint,
        workers=workers,
    )
    return training, [value.item() for value in (curve.a, curve.b)]


def test_a_training_of_several_workers_is_that_of_one(together: Together) -> None:
    wanted, numbers = trained(ALONE)
    assert wanted.best.step > 0
    for found, own in together(2, trained):
        assert found.rows() == wanted.rows() and found.best.step == wanted.best.step and own == numbers


def test_it_goes_on_from_where_the_first_was(together: Together, tmp_path: Path) -> None:
    path, wanted = tmp_path / "training.safetensors", trained(ALONE)
    broken, _ = trained(ALONE, Checkpoint(path, "k", every=0), last=12)
    assert broken.curve[-1].step == 10

    def work(workers: Workers) -> tuple[Training, list[float]]:
        return trained(workers, Checkpoint(path, "k") if workers.first else None)

    for found, numbers in together(2, work):
        assert found.rows() == wanted[0].rows() and numbers == wanted[1]


def test_all_end_where_memory_of_one_does_not_suffice(together: Together) -> None:
    def work(workers: Workers) -> tuple[str | None, int]:
        training, _ = trained(workers, last=7 if workers.rank else 20)
        return training.stopped, training.curve[-1].step

    stopped = "Training ended at step 8 of 20, where memory did not suffice; take batches of 5 images."
    assert together(2, work) == [(stopped, 5)] * 2


def test_what_one_worker_lacks_memory_for_is_known_to_all(together: Together) -> None:
    """Of two sums, one inside the other: who fails before the inner one ends with the others, which wait there."""

    def work(workers: Workers) -> int:
        slices = Slices(size=4, wanted=2, workers=workers)

        def numbers() -> Iterator[Tensor]:
            if workers.rank:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            yield slices.added([torch.ones(1)])

        with pytest.raises(SharedOutOfMemory):
            slices.added(numbers())
        return int(workers.share(7))

    assert together(2, work) == [7, 7]


def test_what_is_a_lack_of_memory() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(RuntimeError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
