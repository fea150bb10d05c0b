"""A file from which a stage goes on where it was broken off: tensors and JSON, nothing pickled."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from onnxdfq.model_file.writing import atomic_write
from onnxdfq.signals import kept
from onnxdfq.work.header import NAME, read_header
from onnxdfq.workers import ALONE, Workers

EVERY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a checkpoint holds. tensors: by name, on the CPU. facts: what JSON can say."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoint:
    """Where one stage keeps how far it is, or what it found.

    Args:
        path: Of the file; its folder is there.
        key: Tells stages apart: what was saved under another key is not taken.
        every: Seconds between two writings at least.
        about: What people want to know of the file, by name.
    """

    def __init__(self, path: Path, key: str, *, every: float = EVERY_S, about: Mapping[str, str] | None = None) -> None:
        self.path, self._key, self._every, self._about = path, key, every, dict(about or {})
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._last >= self._every

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, done: bool = False) -> None:
        """Write beside, then rename. Raises OutputError, and leaves the last one, where the disk takes no more.

        done: whether this is what the stage found, and not how far it is.
        """
        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        header = {"key": self._key, "done": done, "about": self._about, "facts": dict(facts)}
        with atomic_write(self.path, force=True, told=False) as temporary:
            temporary.write_bytes(save(own, metadata={NAME: json.dumps(header)}))
        kept.add(self.path.parent)
        self._last = time.monotonic()

    def load(self, *, done: bool | None = False) -> Saved | None:
        """What was saved last; None where nothing was, or under another key, or of the other kind of `done`.

        done: as it was saved; None takes either.

        Raises:
            InputError: The file is no checkpoint.
        """
        if not self.path.is_file():
            return None
        header = read_header(self.path)
        if header["key"] != self._key or done not in (None, header["done"]):
            return None
        with safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Saved(tensors=tensors, facts=header["facts"])


def shared(checkpoint: Checkpoint | None, workers: Workers = ALONE, *, done: bool | None = False) -> Saved | None:
    """What the first of several workers has kept, for all of them; None where nothing was.

    Args:
        checkpoint: None keeps nothing. Those of other workers are not looked at.
        workers: All of them make this call.
        done: As for `Checkpoint.load`.

    Raises:
        InputError: As `Checkpoint.load`.
        WorkerError: Another worker failed or hangs.
    """
    saved = checkpoint.load(done=done) if checkpoint is not None and workers.first else None
    facts = workers.share(None if saved is None else dict(saved.facts))
    if facts is None:
        return None
    return Saved(tensors=workers.share_tensors({} if saved is None else saved.tensors), facts=facts)


class Parts:
    """Parts of a stage, each the same whoever makes it, and whether those before it were made here or not.

    Args:
        checkpoint: Where those that are done are kept; None keeps none. Of several workers only the first's is used.
        workers: Who make them: each makes every so many-th, and all get all.
    """

    def __init__(self, checkpoint: Checkpoint | None, workers: Workers = ALONE) -> None:
        self._checkpoint, self._workers = checkpoint if workers.first else None, workers
        saved = None if self._checkpoint is None else self._checkpoint.load()
        self._done = workers.share_tensors({} if saved is None else saved.tensors)

    def made(self, makers: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
        """The parts in order, as they were kept, or made. Raises WorkerError: another worker failed or hangs."""
        for start in range(0, len(makers), self._workers.size):
            numbers = range(start, min(start + self._workers.size, len(makers)))
            yield from self._round(numbers, makers)

    def _round(self, numbers: range, makers: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """One part for each worker, or fewer at the end."""
        if all(str(number) in self._done for number in numbers):
            return [self._done[str(number)] for number in numbers]
        own = numbers[self._workers.rank] if self._workers.rank < len(numbers) else None
        made = None if own is None or str(own) in self._done else makers[own]().detach().cpu()
        gathered = self._workers.gather(made)
        found = []
        for number, part in zip(numbers, gathered, strict=False):
            part = self._done.get(str(number), part)
            assert part is not None  # all workers make the same calls
            found.append(part)
        if self._checkpoint is not None:
            self._done |= {str(number): part for number, part in zip(numbers, found, strict=True)}
            if self._checkpoint.due:
                self._checkpoint.save(self._done, {"parts": len(self._done)})
        return found


class Findings:
    """What a stage finds out one by one, each under a name and such that JSON can say it.

    Args:
        checkpoint: Where they are kept; None keeps none.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        saved = None if checkpoint is None else checkpoint.load(done=None)
        self._known: dict[str, Any] = {} if saved is None else dict(saved.facts)

    def __call__(self, name: str, find: Callable[[], Any], *, last: bool = False) -> Any:
        """What was found under this name, or what `find` gives. last: whether nothing else is to be found."""
        if name not in self._known:
            self._known[name] = find()
            if self._checkpoint is not None and (last or self._checkpoint.due):
                self._checkpoint.save({}, self._known, done=last)
        return self._known[name]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers, by "PARAMETER.KEY"."""
    state = optimizer.state_dict()["state"]
    return {
        f"{place}.{key}": value
        for place, entries in state.items()
        for key, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives it back what `optimizer_tensors` told."""
    own = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})
