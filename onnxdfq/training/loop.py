"""The loop that trains: steps on batches, rates that fall, and the best state on what is held back kept."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from onnxdfq.progress import Progress
from onnxdfq.recipe.choices import OptimizerName
from onnxdfq.work.checkpoint import Checkpoint, Saved, optimizer_tensors, restore_optimizer, shared
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.slices import Slices, is_out_of_memory

Schedule = Literal["cosine", "constant", "steps"]
LossesOf = Callable[[Int64[Tensor, "n"], int, Slices], Iterator[Float[Tensor, "*parts"]]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Parameters that train at one rate.

    weight_decay: how strongly each step draws them towards 0. momentum: None is that of the loop.
    """

    parameters: Sequence[nn.Parameter | Tensor]
    rate: float
    weight_decay: float = 0.0
    momentum: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One look at a training.

    step: how many were done. loss: mean over the batches since the last look; None at the start. held_back: that of
    images that do not train. seconds: since the start. parts: what `loss` is the sum of, where a step has several
    losses, each of parameters of its own.
    """

    step: int
    loss: float | None
    held_back: float
    seconds: float
    parts: tuple[float, ...] = ()

    def is_finite(self) -> bool:
        """Whether its losses are numbers."""
        return math.isfinite(self.held_back) and (self.loss is None or math.isfinite(self.loss))


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a training went.

    curve: its looks, in order. best: the one whose state was kept. stopped: why it ended before its last step, as a
    sentence; None where it did not.
    """

    curve: tuple[Point, ...]
    best: Point
    stopped: str | None = None

    def rows(self) -> list[list[float | None]]:
        """The curve as JSON has it: step, loss, held-back loss, and the loss's parts."""
        return [[point.step, point.loss, point.held_back, *point.parts] for point in self.curve]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Steps of an optimizer, with looks at what is held back.

    Args:
        steps: How many.
        batch_size: Images of one step.
        optimizer: "adam", or "sgd" with Nesterov's momentum.
        momentum: Of SGD; the first beta of Adam.
        schedule: Rates fall along half a cosine to 0, stay as they are, or fall to a tenth at each of `milestones`.
        milestones: Shares of the steps.
        warm_up: Share of the steps in which rates rise from 0, before the schedule.
        clip: The greatest norm of the gradients of one group; None leaves them as they are.
        looks: How often the held-back loss is measured after the start.
        slices: Of a batch, each looked at by itself, so that as many workers share a step; to the same gradient but
            for rounding.
    """

    steps: int
    batch_size: int = 64
    optimizer: OptimizerName = "adam"
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warm_up: float = 0.0
    clip: float | None = None
    looks: int = 20
    slices: int = 1

    def run(
        self,
        groups: Sequence[Group],
        losses_of: LossesOf,
        count: int | Sequence[int],
        *,
        held_back: Callable[[], float],
        state: nn.Module,
        seed: int,
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        workers: Workers = ALONE,
    ) -> Training:
        """Train in place; in the end `state` is as it was at the best look, the start among them.

        A loss that is no number, or memory that does not suffice, ends the training there. One that goes on from a
        checkpoint comes to the same as one that was never broken off.

        Args:
            groups: What trains.
            losses_of: Of the images of these indices, at this step, the losses of this worker's own slices: their sum
                over all slices trains. What it draws, it draws by the step, and for the whole batch. Where a batch is
                one slice (see `whole`) a loss may have several parts (P,), whose sum trains.
            count: Of those images; of several, those of each part of them, which are looked at one after another.
            held_back: The loss of images that do not train; the least is the best.
            state: Holds all that training changes.
            seed: Of the order of the images.
            progress: Called after each step.
            checkpoint: Where it goes on from, and keeps how far it is; of several workers the first's.
            workers: Who share each step, and come to the same. What is held back the first alone looks at.

        Raises:
            InputError, OutputError: The checkpoint cannot be read, or written.
            WorkerError: Another worker failed or hangs.
        """
        started, optimizer = time.monotonic(), self._optimizer(groups)
        saved = shared(checkpoint, workers)
        if saved is not None:
            course = _resumed(saved, state, optimizer)
        else:
            start = Point(step=0, loss=None, held_back=_told(held_back, workers), seconds=0.0)
            course = _Course(curve=[start], best=start, copy=_copied(state))
        before = course.curve[-1].seconds
        parts = [count] if isinstance(count, int) else count
        batches = _batches(parts, self.batch_size, torch.Generator().manual_seed(seed))
        losses: list[Tensor] = []
        every, stopped = max(1, self.steps // self.looks), None
        for step in range(1, self.steps + 1):
            index = next(batches)
            if step <= course.curve[-1].step:
                continue
            for own, group in zip(optimizer.param_groups, groups, strict=True):
                own["lr"] = group.rate * self._share((step - 1) / self.steps)
            try:
                slices = Slices(size=len(index), wanted=self.slices, workers=workers)
                losses.append(self._step(optimizer, slices, losses_of(index, step, slices)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                less = f"take batches of {max(1, self.batch_size // 2)} images"
                stopped = f"Training ended at step {step} of {self.steps}, where memory did not suffice; {less}."
                break
            if step % every == 0 or step == self.steps:
                seconds = before + time.monotonic() - started
                means = torch.stack(losses).mean(0)
                point = Point(
                    step=step,
                    loss=float(means.sum()),
                    held_back=_told(held_back, workers),
                    seconds=seconds,
                    parts=tuple(means.tolist()) if means.ndim else (),
                )
                losses.clear()
                if not point.is_finite():
                    stopped = (
                        f"Training ended at step {step} of {self.steps}, where the loss was no number; the state of "
                        f"step {course.best.step} stays."
                    )
                    break
                course.take(point, state)
                if checkpoint is not None and checkpoint.due:
                    course.save(checkpoint, state, optimizer)
            if progress is not None:
                progress(step, self.steps, _words(course.curve[-1]))
        state.load_state_dict(course.copy)
        return Training(curve=tuple(course.curve), best=course.best, stopped=stopped)

    def _step(
        self, optimizer: torch.optim.Optimizer, slices: Slices, losses: Iterator[Float[Tensor, "*parts"]]
    ) -> Float[Tensor, "*parts"]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        loss = slices.backward(losses, parameters)
        if self.clip is not None:
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], self.clip)
        optimizer.step()
        return loss

    def _optimizer(self, groups: Sequence[Group]) -> torch.optim.Optimizer:
        parts: list[dict[str, Any]] = []
        for group in groups:
            momentum = self.momentum if group.momentum is None else group.momentum
            part: dict[str, Any] = {
                "params": list(group.parameters),
                "lr": group.rate,
                "weight_decay": group.weight_decay,
            }
            if self.optimizer == "adam":
                part |= {"betas": (momentum, 0.999)}
            else:
                part |= {"momentum": momentum, "nesterov": momentum > 0}
            parts.append(part)
        return torch.optim.Adam(parts) if self.optimizer == "adam" else torch.optim.SGD(parts)

    def _share(self, done: float) -> float:
        """Of the rate, after this share of the steps."""
        if done < self.warm_up:
            return done / self.warm_up
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "steps":
            return float(0.1 ** sum(done >= milestone for milestone in self.milestones))
        return 1.0


def step_generator(seed: int, step: int) -> torch.Generator:
    """What one step draws from: the same whether steps before it were done in this process or in another."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def whole(loss_of: Callable[[Int64[Tensor, "n"], int], Float[Tensor, "*parts"]]) -> LossesOf:
    """For batches that are not cut: the loss of the images of these indices, at this step."""

    def losses_of(index: Int64[Tensor, "n"], step: int, _: Slices) -> Iterator[Float[Tensor, "*parts"]]:
        yield loss_of(index, step)

    return losses_of


def _told(held_back: Callable[[], float], workers: Workers) -> float:
    """By the first to all: what the best state is chosen by has to be one number."""
    found: float = workers.share(held_back() if workers.first else None)
    return found


def _batches(parts: Sequence[int], size: int, generator: torch.Generator) -> Iterator[Int64[Tensor, "n"]]:
    """Indices of batches without end; each image comes once before any comes again, but for the rest of a batch.

    No batch has images of two parts, and a part of fewer than a batch is left out.
    """
    size = min(size, max(parts))
    starts = [sum(parts[:place]) for place in range(len(parts))]
    while True:
        rounds = torch.randperm(len(parts), generator=generator).tolist() if len(parts) > 1 else [0]
        for part in rounds:
            order = starts[part] + torch.randperm(parts[part], generator=generator)
            yield from (order[start : start + size] for start in range(0, parts[part] - size + 1, size))


@dataclass(kw_only=True, eq=False)
class _Course:
    """How far a training is. copy: the state at `best`."""

    curve: list[Point]
    best: Point
    copy: dict[str, Tensor]

    def take(self, point: Point, state: nn.Module) -> None:
        self.curve.append(point)
        if point.held_back < self.best.held_back:
            self.best, self.copy = point, _copied(state)

    def save(self, checkpoint: Checkpoint, state: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        parts = {"state": state.state_dict(), "best": self.copy, "optimizer": optimizer_tensors(optimizer)}
        tensors = {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}
        checkpoint.save(tensors, {"curve": [asdict(point) for point in self.curve], "best": self.best.step})


def _resumed(saved: Saved, state: nn.Module, optimizer: torch.optim.Optimizer) -> _Course:
    """The course that was saved, with `state` and `optimizer` as they were then."""
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "best": {}, "optimizer": {}}
    for name, tensor in saved.tensors.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    state.load_state_dict(parts["state"])
    restore_optimizer(optimizer, parts["optimizer"])
    curve = [Point(**{**point, "parts": tuple(point["parts"])}) for point in saved.facts["curve"]]
    best = next(point for point in curve if point.step == saved.facts["best"])
    return _Course(curve=curve, best=best, copy=parts["best"])


def _copied(state: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.state_dict().items()}


def _words(point: Point) -> str:
    parts = " + ".join(f"{part:.4g}" for part in point.parts)
    trained = "" if point.loss is None else f"loss {parts or format(point.loss, '.4g')}, "
    return f"{trained}held back {point.held_back:.4g}"
