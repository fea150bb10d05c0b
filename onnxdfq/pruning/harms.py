"""What the outputs lose when channels of one group go: measured on samples, after the repair by moments."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine.cache import Cache
from onnxdfq.images.samples import SamplesLike
from onnxdfq.model_file import batch_of
from onnxdfq.progress import Progress, Steps
from onnxdfq.pruning.frontier import Frontier
from onnxdfq.pruning.moments import give_back, lost_moments
from passes.graph.compared import is_float
from passes.graph.editing import name_of
from passes.prune.channels import ChannelChoice
from passes.prune.plan import CannotPrune, ChannelPlan
from passes.prune.remove_channels import RemoveChannels

IMAGES = 32
RATIOS = tuple(number / 8 for number in range(1, 8))


@dataclass(frozen=True, kw_only=True)
class Option:
    """For a group of layers. ratio: that is asked for. removed: of its layers' channels. harm: noise over signal at
    the outputs, mean over them; 0 where it was not measured."""

    ratio: float
    removed: int
    harm: float = 0.0


def channel_options(choice: ChannelChoice) -> tuple[tuple[Option, ...], ...]:
    """Of every group the ratios that differ in what goes, the first nothing."""
    return tuple(_options(choice, number) for number in range(len(choice.groups)))


def measure_harms(
    model: ir.Model,
    choice: ChannelChoice,
    samples: SamplesLike,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[tuple[Option, ...], ...]:
    """`channel_options`, each with its harm.

    Args:
        model: canonical, of which `choice` is. It is only read.
        choice: which channels go at a ratio.
        samples: in the model's input units, of which the first 32 are used.
        device: where networks run.
        progress: is told of each option.

    Raises:
        OutputError: the temporary folder has no room for the values of a layer.
    """
    options = channel_options(choice)
    outputs = [name_of(value) for value in model.graph.outputs if is_float(value)]
    samples = samples[: max(IMAGES, batch_of(model) or 1)]
    steps = Steps(progress, sum(len(each) - 1 for each in options))
    found = []
    with Cache(dtype=torch.float32) as cache:
        frontier = Frontier(model, samples, cache, device)
        for number, each in enumerate(options):
            frontier.advance(choice.groups[number][0])
            behind = [name for name in outputs if frontier.is_behind(name)]
            wanted = _outputs(frontier, behind)
            measured = [each[0]]
            for option in each[1:]:
                plan = one_group(choice, number, option.ratio)
                found_by = _outputs(frontier, behind, without_channels(model, plan))
                harm = _noise_over_signal(wanted, found_by) / max(len(outputs), 1)
                measured.append(Option(ratio=option.ratio, removed=option.removed, harm=harm))
                steps(choice.groups[number][0])
            found.append(tuple(measured))
    return tuple(found)


def one_group(choice: ChannelChoice, number: int, ratio: float) -> ChannelPlan:
    """This ratio of one group, nothing of the others."""
    return choice.plan([ratio if place == number else 0.0 for place in range(len(choice.groups))])


def without_channels(model: ir.Model, plan: ChannelPlan) -> ir.Model:
    """A copy after the plan, repaired by moments."""
    pruned = model.clone()
    give_back(pruned, lost_moments(pruned, plan))
    RemoveChannels(plan)(pruned)
    return pruned


def _options(choice: ChannelChoice, number: int) -> tuple[Option, ...]:
    options = [Option(ratio=0.0, removed=0)]
    for ratio in RATIOS:
        try:
            removed = one_group(choice, number, ratio).removed
        except CannotPrune:
            break
        if removed > options[-1].removed:
            options.append(Option(ratio=ratio, removed=removed))
    return tuple(options)


@torch.no_grad()
def _outputs(frontier: Frontier, names: Sequence[str], model: ir.Model | None = None) -> list[tuple[Tensor, ...]]:
    return list(frontier.batches(names, model))


def _noise_over_signal(wanted: Sequence[tuple[Tensor, ...]], found: Sequence[tuple[Tensor, ...]]) -> float:
    """Summed over outputs; batches of each."""
    total = 0.0
    for ones, others in zip(zip(*wanted, strict=True), zip(*found, strict=True), strict=True):
        noise = sum(float((one - other).double().square().sum()) for one, other in zip(ones, others, strict=True))
        total += noise / max(sum(float(one.double().square().sum()) for one in ones), 1e-30)
    return total
