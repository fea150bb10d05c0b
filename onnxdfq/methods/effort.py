"""How many images and steps an effort comes to: bounded by the work that they are, not by a clock.

The same model, effort and options give the same counts on every machine, so a run can be repeated to the byte.
"""

from math import prod

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.limits import MOST_IMAGE_BYTES
from onnxdfq.model_file import inputs
from passes.graph.work import Work

# Multiplications that a number which a node computes costs as much as, forward and backward: memory is what it waits
# for. Of nine networks from ResNet-20 (41 M multiplications, .7 M numbers) to FastestDet (122 M, 11 M) the median is
# 70; the bound has to hold for the slowest, FastestDet.
COST_OF_NUMBER = 120
CORE = 3e10  # multiplications a second on one core with AVX2, forward and backward together
CORES = 2  # of an ordinary machine
LIMITS = {"fast": 1e13, "standard": 5e13, "paper": float("inf")}
"""By effort, what one synthesis may cost: about 3 and 15 minutes of such a machine, and no limit."""

ENOUGH_STEPS, FEW_STEPS, LEAST_STEPS = 100, 60, 20  # from dead leaves most is done in 60 steps
ENOUGH_IMAGES, LEAST_IMAGES = 64, 16


def limit_of(effort: str, minutes: float | None) -> float:
    """What a synthesis may cost, in multiplications."""
    return LIMITS[effort] if minutes is None else minutes * 60 * CORES * CORE


def visits_within(work: Work, limit: float) -> float:
    """How many times an image may go through the network, forward and backward. limit: in multiplications."""
    return limit / max(work.macs + COST_OF_NUMBER * work.numbers, 1)


def check_images(model: ir.Model, images: int | None, batch_size: int | None) -> None:
    """Refuses numbers that a user chose, whose images memory may not hold.

    Raises:
        InputError: MOST_IMAGE_BYTES holds fewer images of the model's size.
    """
    most = images_in_memory(model)
    for name, count in (("images", images), ("batch_size", batch_size)):
        if count is not None and count > most:
            raise InputError(
                f"{count:,} images of the model's size come to {count * _bytes_of_image(model):,} bytes, and "
                f"{MOST_IMAGE_BYTES:,} are allowed; give at most {most:,}.",
                field=name,
            )


def images_in_memory(model: ir.Model) -> int:
    """How many samples of all inputs MOST_IMAGE_BYTES hold, at least one."""
    return max(1, MOST_IMAGE_BYTES // _bytes_of_image(model))


def _bytes_of_image(model: ir.Model) -> int:
    return 4 * max(1, sum(prod(size or 1 for size in spec.sample_shape) for spec in inputs(model)))


def affordable(
    work: Work, limit: float, *, images: int, steps: int, fixed_images: bool = False, fixed_steps: bool = False
) -> tuple[int, int]:
    """Images and steps whose work is within the limit, as near to what is wanted as that allows.

    Steps go first, down to 100; then images, down to 64; then steps to 60 and, where an image has many pixels, to 20
    and images to 16, which are done whatever they cost.

    Args:
        work: Of one image through the network.
        limit: In multiplications.
        images: As many as are wanted.
        steps: Likewise, of each image.
        fixed_images: Whether the user chose their number.
        fixed_steps: Likewise.

    Returns:
        The numbers of images and steps.
    """
    visits = visits_within(work, limit)
    for least_steps, least_images in (
        (ENOUGH_STEPS, images),
        (ENOUGH_STEPS, ENOUGH_IMAGES),
        (FEW_STEPS, ENOUGH_IMAGES),
        (LEAST_STEPS, LEAST_IMAGES),
    ):
        if images * steps <= visits:
            break
        if not fixed_steps:
            steps = max(min(steps, int(visits / images)), min(steps, least_steps))
        if not fixed_images:
            images = max(min(images, int(visits / steps) // 8 * 8), min(images, least_images))
    return images, steps
