"""The loop: the best state stays, whatever happens."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from onnxdfq.training.loop import Group, Loop, Training, whole
from onnxdfq.work.checkpoint import Checkpoint


class Line(nn.Module):
    """y = a x, to be fitted to 2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.0))

    def loss(self, x: Tensor) -> Tensor:
        return (self.a * x - 2 * x).square().mean()


X = torch.linspace(1, 2, 32)


def fitted(
    loop: Loop, *, loss: Callable[[Line, Tensor, int], Tensor] = lambda line, x, _: line.loss(x), rate: float = 0.1
) -> tuple[Line, Training]:
    line, calls = Line(), iter(range(10**6))
    found = loop.run(
        [Group(parameters=[line.a], rate=rate)],
        whole(lambda index, _: loss(line, X[index], next(calls))),
        len(X),
        held_back=lambda: line.loss(X).item(),
        state=line,
        seed=0,
    )
    return line, found


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "steps"])
def test_it_learns(optimizer: str, schedule: str) -> None:
    loop = Loop(steps=100, batch_size=8, optimizer=optimizer, schedule=schedule)  # type: ignore[arg-type]
    line, found = fitted(loop, rate=0.1 if optimizer == "adam" else 0.02)
    assert line.a.item() == pytest.approx(2, abs=0.1)
    assert found.stopped is None
    assert [point.step for point in found.curve] == list(range(0, 101, 5))
    assert found.curve[0].loss is None and found.best.held_back == min(point.held_back for point in found.curve)


def test_the_best_state_stays() -> None:
    """A loss that leads away: the start is the best."""
    line, found = fitted(Loop(steps=20), loss=lambda line, x, _: -line.loss(x))
    assert line.a.item() == 0 and found.best.step == 0 and len(found.curve) > 2


def test_a_loss_that_is_no_number_ends_it() -> None:
    line, found = fitted(Loop(steps=100), loss=lambda line, x, n: line.loss(x) * (math.nan if n >= 50 else 1))
    best = min(found.curve, key=lambda point: point.held_back)
    assert found.best == best and 20 <= best.step <= 50
    assert found.stopped == (
        f"Training ended at step 55 of 100, where the loss was no number; the state of step {best.step} stays."
    )
    assert line.a.item() == pytest.approx(2, abs=0.5)


def test_memory_that_does_not_suffice_ends_it_with_advice() -> None:
    def loss(line: Line, x: Tensor, count: int) -> Tensor:
        if count == 30:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return line.loss(x)

    line, found = fitted(Loop(steps=100, batch_size=16), loss=loss)
    assert found.stopped is not None and "at step 31 of 100" in found.stopped and "batches of 8 images" in found.stopped
    assert found.curve[-1].step == 30 and line.loss(X).item() == pytest.approx(found.best.held_back)


def test_other_errors_are_not_hidden() -> None:
    def loss(line: Line, x: Tensor, count: int) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        fitted(Loop(steps=3), loss=loss)


def test_every_image_comes_once_before_any_comes_again() -> None:
    seen: list[Tensor] = []
    line = Line()
    Loop(steps=8, batch_size=8).run(
        [Group(parameters=[line.a], rate=0.1)],
        whole(lambda index, _: (seen.append(index), line.loss(X[index]))[1]),
        32,
        held_back=lambda: 0.0,
        state=line,
        seed=3,
    )
    assert sorted(torch.cat(seen[:4]).tolist()) == sorted(torch.cat(seen[4:]).tolist()) == list(range(32))


def test_gradients_are_clipped() -> None:
    line, _ = fitted(Loop(steps=1, optimizer="sgd", momentum=0, schedule="constant", clip=0.5, looks=1), rate=1.0)
    assert line.a.item() == pytest.approx(0.5, rel=1e-4)


def test_few_images_make_a_smaller_batch() -> None:
    sizes = []
    line = Line()
    Loop(steps=2, batch_size=64).run(
        [Group(parameters=[line.a], rate=0.1)],
        whole(lambda index, _: (sizes.append(len(index)), line.loss(X[index]))[1]),
        5,
        held_back=lambda: 0.0,
        state=line,
        seed=0,
    )
    assert sizes == [5, 5]


class Broken(Exception):
    """What ends a training from outside."""


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("at", [7, 26, 99])
def test_a_training_goes_on_where_it_was_broken_off(optimizer: str, at: int, tmp_path: Path) -> None:
    loop = Loop(steps=100, batch_size=8, optimizer=optimizer, looks=10)  # type: ignore[arg-type]

    def run(line: Line, checkpoint: Checkpoint | None, last: int) -> Training:
        def loss(index: Tensor, step: int) -> Tensor:
            if step > last:
                raise Broken
            return line.loss(X[index])

        return loop.run(
            [Group(parameters=[line.a], rate=0.01)],
            whole(loss),
            len(X),
            held_back=lambda: line.loss(X).item(),
            state=line,
            seed=0,
            checkpoint=checkpoint,
        )

    unbroken = Line()
    wanted = run(unbroken, None, 100)
    path = tmp_path / "training.safetensors"
    with pytest.raises(Broken):
        run(Line(), Checkpoint(path, "k", every=0), at)
    assert path.exists() == (at >= 10)
    again = Line()
    found = run(again, Checkpoint(path, "k", every=0), 100)
    assert again.a.item() == unbroken.a.item()
    assert found.rows() == wanted.rows()
