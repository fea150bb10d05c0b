"""A generator as a source of images, which stays at hand for what is trained on it afterwards."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from onnxdfq.generators.task import GeneratorTask
from onnxdfq.images.images import Images
from onnxdfq.images.source import FixedImages


class GeneratedImages(FixedImages):
    """Images of a generator that is trained when first asked for.

    Args:
        train: Makes the generator, trained against the float network alone.
        deliver: The task and a count → images.
        rate: Of Adam, for the generator while another network trains on its images; 0 leaves it as it is.
    """

    def __init__(
        self, train: Callable[[], GeneratorTask], deliver: Callable[[GeneratorTask, int], Images], *, rate: float = 0.0
    ) -> None:
        super().__init__(lambda count: deliver(self.task, count))
        self.rate, self._train = rate, train
        self._task: GeneratorTask | None = None

    @property
    def task(self) -> GeneratorTask:
        """The generator as its training left it, and the network that judges it."""
        if self._task is None:
            self._task = self._train()
        return self._task

    @torch.no_grad()
    def batches(self, size: int, *, seed: int) -> Iterator[Tensor]:
        """See ImageSource: images that none of `fixed` are."""
        random = torch.Generator().manual_seed(seed)
        while True:
            yield self.task.generate(size, random)[0]
