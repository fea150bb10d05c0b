"""Inputs that decide nothing, and that the written files are judged by."""

from dataclasses import replace

import numpy as np

from onnxdfq.images.feeding import Feeding
from onnxdfq.images.images import Images
from onnxdfq.methods.dead_leaves import DeadLeaves
from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.model_file import fillings, given_by_user

SCALES = (1.0, 0.5, 0.125)
COUNT = 32  # of them, where they are made
MOST = 64  # of the user's own
LEAST_GIVEN, EVERY = 32, 8  # of so many and more of the user's own, each eighth is held back
SEED = 1_000_003  # apart from that of the run, so that no image is one that calibrated
CHOOSING, CHOOSING_SEED = 512, 2_000_003  # of those that a budget of answers is held by, where they are made


def made(model: FloatModel, run: Run, *, count: int = COUNT, seed: int = SEED) -> Images:
    """Dead leaves, noise where the input is no picture: of a kind that no method's own images are made to look like.

    Args:
        model: With its BatchNormalizations, which tell the range of an input.
        run: Whose seed they are drawn from.
        count: How many.
        seed: Added to the run's.
    """
    return DeadLeaves(steps=0).synthesize(
        model.graph, count=count, seed=run.recipe.seed + seed, normalization=model.normalization, device=run.device
    )


def at_several_scales(images: Images, model: FloatModel) -> tuple[Images, ...]:
    """The images, and for an input that is no picture the same at half and an eighth of their deviation.

    Nobody knows the range of such an input; a file that is good only at the one that was guessed is not good.
    """
    feeding = Feeding(model.graph)
    if feeding.main.image is not None:
        return (images,)
    given = given_by_user(model.graph)
    free = {spec.name for spec in feeding.specs.values() if spec.is_float and spec.image is None} - given
    found = fillings(model.graph)

    def scaled(name: str, array: np.ndarray, factor: float) -> np.ndarray:
        return array * array.dtype.type(factor) if name in free and found[name].kind == "normal" else array

    return tuple(
        replace(
            images,
            pixels=scaled(feeding.main.name, images.pixels, factor),
            others={name: scaled(name, array, factor) for name, array in images.others.items()},
        )
        for factor in SCALES
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
    return images.taken(kept), images.taken(held)
