"""Inputs that decide nothing, and that the written files are judged by."""

from dataclasses import replace

import numpy as np

from onnxdfq.images.images import Images
from onnxdfq.methods.dead_leaves import DeadLeaves
from onnxdfq.methods.method import FloatModel, Run

COUNT = 32  # of them, where they are made
MOST = 64  # of the user's own
LEAST_GIVEN, EVERY = 32, 8  # of so many and more of the user's own, each eighth is held back
SEED = 1_000_003  # apart from that of the run, so that no image is one that calibrated


def made(model: FloatModel, run: Run) -> Images:
    """Dead leaves, noise where the input is no picture: of a kind that no method's own images are made to look like.

    Args:
        model: With its BatchNormalizations, which tell the range of an input.
        run: Whose seed they are drawn from.
    """
    return DeadLeaves(steps=0).synthesize(
        model.graph, count=COUNT, seed=run.recipe.seed + SEED, normalization=model.normalization, device=run.device
    )


def parted(images: Images, count: int) -> tuple[Images, Images | None]:
    """The user's own as those that calibrate and those that are held back; None where there are too few to spare any.

    Args:
        images: All that were read.
        count: How many calibrate at most.
    """
    total = len(images)
    rows = np.arange(total)
    held = rows[count : count + MOST] if total > count else rows[EVERY - 1 :: EVERY][:MOST]
    if total < LEAST_GIVEN or not len(held):
        return images.first(count), None
    kept = np.setdiff1d(rows, held)[:count]
    return _rows(images, kept), _rows(images, held)


def _rows(images: Images, rows: np.ndarray) -> Images:
    others = {name: array[rows] for name, array in images.others.items()}
    return replace(images, pixels=images.pixels[rows], others=others)
