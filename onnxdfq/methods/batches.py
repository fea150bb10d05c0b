"""Batches of images that do not depend on one another, so that any number of workers makes the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float32
from torch import Tensor

from onnxdfq.images.merging import shard_origin
from onnxdfq.progress import Steps
from onnxdfq.synthesis.hyperparameters import batch_generators
from onnxdfq.work.checkpoint import Parts

if TYPE_CHECKING:
    from onnxdfq.methods.method import Making


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """number: among all of the synthesis. first: the number of its first image. size: how many images. random: what it
    draws from."""

    number: int
    first: int
    size: int
    random: torch.Generator


def batches(making: Making, sizes: Sequence[int]) -> tuple[Batch, ...]:
    """Those that the shard has of batches of these sizes. Raises InputError: it would have none."""
    firsts = [0, *accumulate(sizes)]
    found = [
        Batch(number=number, first=firsts[number], size=size, random=random)
        for number, (size, random) in enumerate(zip(sizes, batch_generators(making.seed, len(sizes)), strict=True))
    ]
    return tuple(found[making.shard.part(len(sizes), "batches")])


def origin(making: Making, several: Sequence[Batch]) -> dict[str, str]:
    """What the provenance of a shard says beside that of all images."""
    if making.shard.is_whole:
        return {}
    first, end = several[0].first, several[-1].first + several[-1].size
    return shard_origin(making.shard, first, min(making.count, end) - first)


def made(
    making: Making,
    several: Sequence[Batch],
    planes: tuple[int, int, int],
    make: Callable[[Batch, Steps], Float32[Tensor, "b c h w"]],
    steps: int,
) -> Float32[Tensor, "n c h w"]:
    """The images of these batches, without what the last has beyond those that are wanted.

    Args:
        making: What is to be made.
        several: All batches of the shard.
        planes: (C, H, W) of an image.
        make: Makes one batch, and counts its steps.
        steps: Of one batch.

    Raises:
        WorkerError: Another worker failed or hangs.
    """
    first = several[0].first
    pixels = torch.empty(min(making.count, several[-1].first + several[-1].size) - first, *planes)
    tell = Steps(making.progress, steps * len(several))
    parts = Parts(making.checkpoint, making.workers).made([partial(make, batch, tell) for batch in several])
    for done, (batch, images) in enumerate(zip(several, parts, strict=True), 1):
        rows = pixels[batch.first - first : batch.first - first + batch.size]
        rows.copy_(images[: len(rows)])
        tell.reach(done * steps)
    return pixels
