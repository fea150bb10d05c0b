"""One of several processes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import WorkerError
from onnxdfq.progress import Progress, ProgressFactory
from onnxdfq.workers.interface import INTERFACE, address_towards, set_interface
from onnxdfq.workers.messages import Messages
from onnxdfq.workers.place import Place
from onnxdfq.workers.workers import Released, Workers

if TYPE_CHECKING:
    from torch import Tensor


class Several(Workers):
    """One of several, which meet by `messages`, and exchange tensors by gloo once all are there.

    What goes between them is in main memory: images end there, and sums are some ten thousand numbers.
    """

    def __init__(self, messages: Messages) -> None:
        self._messages, self._place = messages, messages.place
        self.rank, self.size = self._place.rank, self._place.size
        self._grouped = False

    def wait_for_first(self) -> None:
        """See Workers."""
        if not self.first:
            self._messages.await_first()

    def agree(self, facts: Mapping[str, str]) -> None:
        """See Workers."""
        said = [json.loads(text) for text in self._messages.round(json.dumps([self._place.host, dict(facts)]))]
        _, wanted = said[0]
        for rank, (host, found) in enumerate(said):
            for what, value in wanted.items():
                if found.get(what) != value:
                    raise WorkerError(
                        f"Rank {rank} of {self.size} ({host}) has {what} {found.get(what)}, and rank 0 has {value}; "
                        "start all ranks with the same command, files and versions.",
                        exit_code=2,
                    )

    def take_gpu(self) -> None:
        """See Workers. Processes of one machine share its devices where they are more than these."""
        import torch

        torch.cuda.set_device(self._place.local % torch.cuda.device_count())

    def gather(self, tensor: Tensor | None) -> Sequence[Tensor | None]:
        """See Workers."""
        import torch
        from torch.distributed import broadcast

        if self.size == 1:
            return [tensor]

        own = None if tensor is None else tensor.detach().cpu().contiguous()
        header = None if own is None else (str(own.dtype).removeprefix("torch."), list(own.shape))
        headers = [json.loads(text) for text in self._messages.round(json.dumps(header))]
        self._group()
        device = torch.device("cpu") if tensor is None else tensor.device
        found: list[Tensor | None] = []
        for rank, given in enumerate(headers):
            if given is None:
                found.append(None)
                continue
            dtype, shape = given
            part = torch.empty(shape, dtype=getattr(torch, dtype)) if own is None or rank != self.rank else own
            with _connected(rank):
                broadcast(part.view(-1).view(torch.uint8), src=rank)
            found.append(part.to(device))
        return found

    def share(self, value: Any, *, by: int = 0) -> Any:
        """See Workers."""
        if self.size == 1:
            return value
        return json.loads(self._messages.round(json.dumps(value) if self.rank == by else "")[by])

    def watched(self, progress: ProgressFactory) -> ProgressFactory:
        """See Workers. Only the first shows anything."""

        def factory(label: str) -> Progress:
            shown = progress(label) if self.first else None

            def step(done: int, total: int, note: str, /) -> None:
                self._messages.beat()
                if shown is not None:
                    shown(done, total, note)

            return step

        return factory

    def release(self) -> None:
        """See Workers. The first is alone from then on."""
        if not self.first:
            raise Released
        self.size = 1

    def _group(self) -> None:
        """All are there when this is called. Raises WorkerError: they do not reach one another."""
        if self._grouped:
            return
        own = address_towards(self._place.address)
        set_interface(own, self._messages.round(own))
        failed: list[RuntimeError] = []
        thread = Thread(target=self._connect, args=(failed,), daemon=True)  # which nothing can interrupt
        thread.start()
        self._messages.wait_for(lambda: not thread.is_alive())
        if failed:
            raise WorkerError(
                f"{self._place.name} cannot exchange tensors with the others; {INTERFACE} names the network interface "
                "that leads to them, and no firewall may keep them apart."
            ) from failed[0]
        self._grouped = True

    def _connect(self, failed: list[RuntimeError]) -> None:
        from torch.distributed import init_process_group

        try:
            init_process_group(
                "gloo",
                store=self._messages.store,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=self._place.timeout),
            )
        except RuntimeError as error:
            failed.append(error)

    def close(self) -> None:
        """Ends the exchange of tensors."""
        from torch.distributed import destroy_process_group

        if self._grouped:
            destroy_process_group()


@contextmanager
def _connected(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # whoever ended while it spoke
        raise WorkerError(f"The connection to rank {rank} broke.") from error


def meet(place: Place) -> tuple[Several, Messages]:
    """This process among the others. Raises WorkerError: nobody is where all meet."""
    messages = Messages(place)
    return Several(messages), messages
