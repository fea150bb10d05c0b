"""What the house sees of several processes: `Workers`, of which the one that is alone has nothing to wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxdfq.progress import ProgressFactory

if TYPE_CHECKING:
    from torch import Tensor


class Released(BaseException):
    """This worker's part is done; the first goes on alone. No error, and nothing that catches errors may catch it."""


class Workers:
    """One process alone. Those of several are `onnxdfq.workers.several.Several`, which all make the same calls.

    rank: which this one is, from 0. size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def wait_for_first(self) -> None:
        """Returns once the first has looked at what all of them were given, so that it tells what is wrong with it.

        Raises:
            WorkerError: It found something, or gave no sign of life.
        """

    def agree(self, facts: Mapping[str, str]) -> None:
        """Refuses what would not come to the same bytes. facts: by what they are, which all have to have the same.

        Raises:
            WorkerError: A rank, which is named, has another one; or one gave no sign of life.
        """

    def take_gpu(self) -> None:
        """From now on "cuda" is this one's own device, where there are several."""

    def gather(self, tensor: Tensor | None) -> Sequence[Tensor | None]:
        """That of each, by rank, on the device of this one's own; None of who gave none.

        Raises:
            WorkerError: A rank, which is named, failed or gave no sign of life.
        """
        return [tensor]

    def share(self, value: Any, *, by: int = 0) -> Any:
        """What one of them gave, for all. value: of what JSON can say. by: whose. Raises WorkerError as `gather`."""
        return value

    def share_tensors(self, tensors: Mapping[str, Tensor], *, by: int = 0) -> dict[str, Tensor]:
        """Those of one of them, for all. by: whose. Raises WorkerError as `gather`."""
        found = {}
        for name in self.share(sorted(tensors), by=by):
            tensor = self.gather(tensors[name] if self.rank == by else None)[by]
            assert tensor is not None  # whose it is has all of its own
            found[name] = tensor
        return found

    def watched(self, progress: ProgressFactory) -> ProgressFactory:
        """The same, where each step is a sign of life."""
        return progress

    def release(self) -> None:
        """Ends the part of all but the first. Raises Released in these."""


ALONE = Workers()
