"""A batch that is looked at slice by slice, so that several workers share it and come to the sums of one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.workers.workers import ALONE, Workers

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


class SharedOutOfMemory(MemoryError):
    """Memory of a worker did not suffice, which all of them know of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Those of one batch. What is added over them is added in their order, whoever looked at them: it has the same
    bytes for any number of workers.

    size: images of the batch. wanted: how many slices; where there are fewer images, one for each. workers: who share
    them; each looks at every so many-th.
    """

    size: int
    wanted: int = 1
    workers: Workers = ALONE

    @property
    def rows(self) -> tuple[slice, ...]:
        """Which images of the batch each slice has."""
        count = min(self.wanted, self.size)
        least, more = divmod(self.size, count)
        starts = [place * least + min(place, more) for place in range(count + 1)]
        return tuple(slice(start, stop) for start, stop in pairwise(starts))

    @property
    def own(self) -> tuple[slice, ...]:
        """Those of this worker; none where there are more workers than slices, and this is one of the last."""
        return self.rows[self.workers.rank :: self.workers.size]

    def share(self, rows: slice) -> float:
        """Of a slice in its batch: what a mean over its images counts in that over all."""
        return float(rows.stop - rows.start) / self.size

    def added(self, own: Iterable[Float[Tensor, "v"]]) -> Float[Tensor, "v"]:
        """The sum over all slices, on every worker.

        Args:
            own: What this worker says of each of its own, in order. They are worked out here: where memory of one
                worker does not suffice, all end alike.

        Raises:
            SharedOutOfMemory: As said.
            WorkerError: Another worker failed or hangs.
        """
        size, count = self.workers.size, len(self.rows)
        if size == 1:
            return reduce(torch.add, own)
        try:
            said = list(own)
            table = torch.stack(said) if said else None
        except SharedOutOfMemory:
            raise
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            table = None
        tables = self.workers.gather(table)[: min(size, count)]
        found = [part for part in tables if part is not None]
        if len(found) < len(tables):
            raise SharedOutOfMemory
        return reduce(torch.add, (found[place % size][place // size] for place in range(count)))

    def backward(
        self, losses: Iterable[Float[Tensor, "*parts"]], parameters: Sequence[Tensor]
    ) -> Float32[Tensor, "*parts"]:
        """The loss of the batch; its gradients are those of `parameters` then.

        A worker tells 4 bytes for the loss, 4 for each parameter, and 4 for each of its elements, for each of its own
        slices.

        Args:
            losses: Of this worker's own slices, whose sum over all slices is that of the batch: each (), or several
                parts (P,) of a batch that is one slice.
            parameters: float32. What no loss reaches has no gradient.

        Raises:
            SharedOutOfMemory, WorkerError: As `added`.
        """
        if len(self.rows) == self.workers.size == 1:
            (loss,) = losses
            _clear(parameters)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        sizes = [parameter.numel() for parameter in parameters]
        total = self.added(_slopes(losses, parameters))
        loss, reached, *slopes = torch.split(total, [1, len(sizes), *sizes])
        for parameter, has, slope in zip(parameters, reached.tolist(), slopes, strict=True):
            parameter.grad = slope.view(parameter.shape).to(parameter.device) if has else None
        return loss[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, on whatever device, found too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def _slopes(losses: Iterable[Tensor], parameters: Sequence[Tensor]) -> Iterator[Float32[Tensor, "v"]]:
    """Of each loss in one vector: itself, whether it reaches each parameter, and its gradients by these."""
    for loss in losses:
        _clear(parameters)
        loss.backward()  # type: ignore[no-untyped-call]
        slopes = [parameter.grad for parameter in parameters]
        reached = torch.tensor([float(slope is not None) for slope in slopes], device=loss.device)
        flat = [
            parameter.new_zeros(parameter.numel()) if slope is None else slope.flatten()
            for parameter, slope in zip(parameters, slopes, strict=True)
        ]
        yield torch.cat([loss.detach().view(1), reached, *flat])


def _clear(parameters: Sequence[Tensor]) -> None:
    for parameter in parameters:
        parameter.grad = None
