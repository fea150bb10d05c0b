"""A generator, and the float network that judges it, from a model."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import onnx_ir as ir
import torch
from torch import nn

from onnxdfq.errors import InputError
from onnxdfq.generators.task import GeneratorLoss, GeneratorTask
from onnxdfq.images.normalization import Normalization
from onnxdfq.recipe.choices import Precision
from onnxdfq.synthesis.input_range import input_range
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.training.outputs import class_scores, distilled_outputs

INSTEAD = "--method dgh and --method dead-leaves make images without, and --calibration FILE takes your own"

Module = TypeVar("Module", bound=nn.Module)
Build = Callable[[tuple[int, int, int], int], nn.Module]
"""(C, H, W) of images and the number of labels → a generator."""


def prepared_task(
    model: ir.Model,
    build: Build,
    loss: GeneratorLoss,
    *,
    method: str,
    seed: int,
    normalization: Normalization | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
    levels: Sequence[str] = (),
    statistics: bool = True,
) -> GeneratorTask:
    """A new generator for a model.

    Args:
        model: Canonical, its BatchNormalizations in place; it is only read.
        build: Makes the generator; what torch draws in it follows from `seed`.
        loss: Of the generator.
        method: Whose name an error begins with.
        seed: Of the generator's first weights.
        normalization: The user's, None where there is none.
        device: Where both run.
        precision: As for `TappedNetwork`.
        levels: Names of values whose features the task reads.
        statistics: As for `TappedNetwork`.

    Raises:
        InputError: No output scores classes.
        NoBatchNorm: The model has none.
    """
    outputs = distilled_outputs(model.graph)
    scores = class_scores(outputs)
    if scores is None:
        raise InputError(
            f"{method} asks for images by their labels, and no output of the model scores classes, as (N, K); "
            f"{INSTEAD}.",
            field="method",
        )
    network = TappedNetwork(
        model,
        method=method,
        device=device,
        precision=precision,
        outputs=[*(output.name for output in outputs), *levels],
        statistics=statistics,
    )
    labels = _label_count(network, scores)
    generator = seeded(seed, lambda: build(network.planes, labels))
    scale = input_range(model, normalization)
    return GeneratorTask(generator, network, scale, scores=scores, labels=labels, loss=loss, levels=levels)


def seeded(seed: int, build: Callable[[], Module]) -> Module:
    """A module whose first weights follow from a seed; what torch draws elsewhere stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@torch.no_grad()
def _label_count(network: TappedNetwork, scores: int) -> int:
    size = network.batch_sizes(1, 1)[0]
    _, outputs = network.forward(network.given(torch.zeros(size, *network.planes, device=network.device)))
    return int(outputs[scores].shape[1])
