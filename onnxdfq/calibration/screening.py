"""Which thresholds are worth a measurement at the outputs, estimated for all activations by one gradient an image.

A small error e of an activation changes the outputs by J e. With random signs v, the square of (v J) · e is |J e|² on
average, and one backward pass gives v J for every activation. So a rounding is judged by one multiplication, where a
measurement runs the rest of the network.
"""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.calibration.memory import BATCH_BYTES, bytes_behind, images_within
from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.precision import channels_last
from onnxdfq.images.samples import SamplesLike
from passes.graph.compared import compared_values
from passes.graph.parts import parts_of, split_into
from passes.quantize.plan import QuantPlan, TensorQuant

logger = logging.getLogger(__name__)

# Of the errors after and before. (Of 72 activations on seven networks that gain when all is measured, it misses two.)
WORTH_A_LOOK = 0.9
# Of the error of all activations, what those that are not measured might gain together. (0.02 saved a fifth more time;
# one output of two then lost half a decibel, which the mean over the outputs does not show.)
LEFT_OUT = 0.005
PROBES = 16  # images times random signs, at least; twice as many chose no better on four networks
# Both estimates stand here: the errors of a tensor taken together, and each on its own as if they had nothing in common
# (less is left to chance then, but what many cut-off values do together is overlooked).
Estimates = Float[NDArray[np.float64], "2 candidates"]


def worth_measuring(
    model: ir.Model,
    pixels: SamplesLike,
    plans: Mapping[str, Mapping[int, QuantPlan]],
    *,
    device: str,
) -> dict[str, dict[int, QuantPlan]]:
    """Of the plans, those that may lower the error at the outputs, and for comparison the first of the same activation.

    What gains least for the work of a measurement is left out. All plans of an activation stay where no gradient
    reaches it.

    Args:
        model: Float, BatchNormalization folded; shapes inferred.
        pixels: In the model's input units.
        plans: Value name → any number → the plan whose grid the value takes. The first is what the others are to beat.
        device: Where the network runs.
    """
    try:
        estimates = _estimates(model, pixels, plans, device)
    except RuntimeError as error:  # torch has no derivative of some operator: then all is measured
        logger.debug("nothing is estimated: %s", error)
        return {name: dict(by_index) for name, by_index in plans.items()}
    kept = _of_use(estimates, bytes_behind(model))
    worth = {}
    for name, by_index in plans.items():
        if name in kept:
            worth[name] = {index: plan for place, (index, plan) in enumerate(by_index.items()) if place in kept[name]}
    return worth


def _of_use(estimates: Mapping[str, Estimates], work: Mapping[str, int]) -> dict[str, set[int]]:
    """Value name → places of the first candidate and of the best by either estimate, where that may help enough.

    Near the outputs a measurement is cheap, so little gain is enough. work: value name → of one measurement.
    """
    # the others: no gradient arrives there, or a value overflowed
    known = {name: costs for name, costs in estimates.items() if np.isfinite(costs).all() and (costs[:, 0] > 0).all()}
    kept = {name: set(range(costs.shape[1])) for name, costs in estimates.items() if name not in known}
    totals, gains = sum(costs[:, 0] for costs in known.values()), {}
    for name, costs in known.items():
        least = costs.min(axis=1)
        helps = least < WORTH_A_LOOK * costs[:, 0]
        if helps.any():
            kept[name] = {0, *costs.argmin(axis=1)[helps].tolist()}
            gains[name] = float(((costs[:, 0] - least) / totals)[helps].max())
    left_out = 0.0
    for name in sorted(gains, key=lambda name: gains[name] / (work[name] + 1)):
        left_out += gains[name]
        if left_out > LEFT_OUT:
            break
        del kept[name]
    return kept


def _estimates(
    model: ir.Model,
    pixels: SamplesLike,
    plans: Mapping[str, Mapping[int, QuantPlan]],
    device: str,
) -> dict[str, Estimates]:
    """Value name → noise over signal at the outputs, up to a common factor."""
    parts = {value.name or "": parts_of(value) for value in compared_values(model.graph)}
    graph = TorchGraph(model, outputs=list(dict.fromkeys([*plans, *parts]))).to(device).eval()
    signs = torch.Generator().manual_seed(0)
    found: dict[str, Estimates] = {name: np.zeros((2, len(by_index))) for name, by_index in plans.items()}
    size = min(images_within(model, 4 * BATCH_BYTES, keeps_all=True), len(pixels))
    for batch in Feeds(model).batches(graph.input_names, pixels, size, device):
        given = (tensor.requires_grad_(tensor.is_floating_point()) for tensor in map(channels_last, batch))
        values = dict(graph.stream(*given))
        results = [
            part for name in parts if values[name].requires_grad for part in split_into(values[name], parts[name])
        ]
        for gradients in _gradients(results, [values[name] for name in plans], -(-PROBES // len(pixels)), signs):
            for (name, by_index), gradient in zip(plans.items(), gradients, strict=True):
                if gradient is not None:
                    found[name] += _costs(values[name].detach(), gradient, name, by_index)
    return found


def _gradients(
    results: list[Tensor], values: list[Tensor], times: int, signs: torch.Generator
) -> Iterator[tuple[Tensor | None, ...]]:
    """v J of the values, each part of an output measured in its own root mean square. times: of random signs v."""
    for left in reversed(range(times)):
        weighted = [
            (result * (torch.randint(0, 2, result.shape, generator=signs) * 2 - 1).to(result.device)).sum() / power
            for result in results
            if (power := float(result.detach().double().square().sum().sqrt())) > 0
        ]
        if not weighted:
            return
        yield torch.autograd.grad(sum(weighted[1:], weighted[0]), values, retain_graph=left > 0, allow_unused=True)


def _costs(
    value: Float[Tensor, "..."], gradient: Float[Tensor, "..."], name: str, plans: Mapping[int, QuantPlan]
) -> Estimates:
    """The estimates for one activation on one batch."""
    costs = np.zeros((2, len(plans)))
    for place, plan in enumerate(plans.values()):
        quant = plan.read_quant(name)
        assert quant is not None
        share = rounded(value, quant, plan.shifts.get(name, 0.0)).sub_(value).mul_(gradient)
        # images one by one: what they have in common is left to chance by the signs
        by_image = share.sum(tuple(range(1, share.ndim))) if share.ndim > 1 else share
        costs[:, place] = float(by_image.double().square().sum()), float(share.square_().sum(dtype=torch.float64))
    return costs


def rounded(value: Float[Tensor, "*shape"], quant: TensorQuant, shift: float) -> Float[Tensor, "*shape"]:
    """A copy, as it is read from the quantized integers; same shape. shift: added before, taken away after."""
    scale = float(quant.scale)
    copy = value + shift if shift else value
    copy = (copy / scale).round_().clamp_(*quant.range).mul_(scale)
    return copy.sub_(shift) if shift else copy
