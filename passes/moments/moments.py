"""Mean and standard deviation of activations without data: from batch normalizations through the operators behind."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Int, Shaped
from numpy.typing import NDArray

from passes.graph.batch_norm import read_batch_norms
from passes.graph.editing import as_float64, is_op, name_of, scalar_value
from passes.graph.operators import ELEMENTWISE, LAYERS
from passes.moments.layers import LayerSpreads
from passes.moments.moves import MOVES, LabelledSpread, along_channels, spread_of_concat, spread_of_move
from passes.moments.rules import FUNCTIONS, RULES
from passes.moments.spread import Spread


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and standard deviation of each channel (axis 1) of a value, over images and positions, in the value's unit.

    approximate: whether they rest on more than the assumption that the channels in front of an activation function are
        normal: that two values are independent, or that a pooling changes nothing.
    """

    mean: Float64[NDArray[np.float64], "c"]
    std: Float64[NDArray[np.float64], "c"]
    approximate: bool = False

    def scaled(self, factor: Float64[NDArray[np.float64], "c"]) -> "Moments":
        """The moments of the value times `factor` (C,)."""
        return Moments(mean=self.mean * factor, std=self.std * np.abs(factor), approximate=self.approximate)

    def lowered(self, amount: Float64[NDArray[np.float64], "c"]) -> "Moments":
        """The moments of the value less `amount` (C,)."""
        return Moments(mean=self.mean - amount, std=self.std, approximate=self.approximate)

    def taken(self, channels: Int[NDArray[np.int64], "c"]) -> "Moments":
        """The moments of a value whose channels are the old ones of these indices, (C',)."""
        return Moments(mean=self.mean[channels], std=self.std[channels], approximate=self.approximate)


def moments_after_edit(
    moments: Mapping[str, Moments],
    by: Mapping[str, Shaped[NDArray[Any], "_"]],
    how: Callable[[Moments, NDArray[Any]], Moments],
) -> dict[str, Moments]:
    """The moments of a model after an edit of its graph that changed some values.

    Args:
        moments: before the edit, by value name.
        by: value name → argument of the edit, (C,): for EqualizeChannels and AbsorbHighBias the pass's own, for
            SplitChannels `ocs.widened_values`.
        how: what the edit does to moments: Moments.scaled, Moments.lowered, Moments.taken for these three.
    """
    return {name: how(old, by[name]) if name in by else old for name, old in moments.items()}


def batch_norm_moments(model: ir.Model) -> dict[str, Moments]:
    """The moments that BatchNormalization nodes hold, by value name.

    Of their inputs these are the running statistics, of their outputs beta and |gamma|. FoldBatchNorm keeps the names
    of values, so moments that were read before it serve the folded model as the argument `moments` of the functions
    below.
    """
    outputs = {node.name: name_of(node.outputs[0]) for node in model.graph if is_op(node, "BatchNormalization")}
    found: dict[str, Moments] = {}
    for stats in read_batch_norms(model):
        mean, var, scale, bias = (as_float64(part) for part in (stats.mean, stats.var, stats.scale, stats.bias))
        if not np.isfinite([mean, var, scale, bias]).all() or (var < 0).any():
            continue
        found[stats.value] = Moments(mean=mean, std=np.sqrt(var))
        # below epsilon the variance of the output falls short of gamma squared
        ratio = np.sqrt(np.divide(var, var + stats.epsilon, out=np.zeros_like(var), where=var > 0))
        found[outputs[stats.node]] = Moments(mean=bias, std=np.abs(scale) * ratio)
    return found


def activation_moments(model: ir.Model, moments: Mapping[str, Moments | Spread] | None = None) -> dict[str, Moments]:
    """The moments of every value that can be computed without data.

    Args:
        model: with or without its batch normalizations.
        moments: where to begin besides the batch normalizations of `model`, by value name: the image, or what
            `batch_norm_moments` read before these were folded. Moments stand for normal values.

    Returns:
        Moments by value name, of axis 1; a Gemm's features are its channels. A value that no rule reaches is absent.

    From the batch normalizations on, moments go through activation functions (clipped-normal moments, DFQ, arXiv
    1906.04721, appendix C, by quadrature for any function), sums and products of independent values, Concat, Split,
    channel shuffles, poolings, and layers without normalization (`LayerSpreads`).
    """
    return {
        name: Moments(mean=spread.mean, std=spread.std, approximate=spread.approximate)
        for name, spread in spreads(model, moments)
    }


def spreads(model: ir.Model, moments: Mapping[str, Moments | Spread] | None = None) -> Iterator[tuple[str, Spread]]:
    """The distributions behind `activation_moments`, by value name, in graph order."""
    for name, found in value_spreads(model, moments):
        if isinstance(found, Spread):
            yield name, found


def value_spreads(
    model: ir.Model, moments: Mapping[str, Moments | Spread] | None = None
) -> Iterator[tuple[str, Spread | LabelledSpread]]:
    """As `spreads`, and also of values whose channels lie on no axis of their own, as in front of a detector's output.

    A generator that drops a spread once no later node reads it, so that memory stays small.
    """
    seeds = batch_norm_moments(model) | dict(moments or {})
    alive: dict[ir.Value, Spread | LabelledSpread] = {}
    unread = {value: len(tuple(value.uses())) for value in _values(model.graph)}
    for value in model.graph.inputs:
        if (seed := seeds.get(name_of(value))) is not None:
            alive[value] = spread = _seeded(value, seed, None)
            yield name_of(value), spread
    layers = LayerSpreads()
    for node in model.graph:
        known_outputs = [seeds.get(name_of(value)) for value in node.outputs]
        for value, seed, result in zip(
            node.outputs, known_outputs, _results(node, alive, layers, known_outputs[0]), strict=True
        ):
            found = result if seed is None else _seeded(value, seed, result)
            if found is None or (isinstance(found, Spread) and not _fits(value, found)):
                continue
            if unread[value]:
                alive[value] = found
            yield name_of(value), found
        for read in node.inputs:
            if read in unread:
                unread[read] -= 1
                if not unread[read]:
                    alive.pop(read, None)


def _results(
    node: ir.Node,
    alive: Mapping[ir.Value, Spread | LabelledSpread],
    layers: LayerSpreads,
    seed: Moments | Spread | None,
) -> tuple[Spread | LabelledSpread | None, ...]:
    """One for each output of `node`. seed: the moments that were given for the first output."""
    found = [None if value is None else alive.get(value) for value in node.inputs]
    if found and found[0] is not None and is_op(node, *MOVES):
        return spread_of_move(node, found[0])
    if any(isinstance(spread, LabelledSpread) for spread in found) and not is_op(node, *LAYERS):
        elsewhere = spread_of_concat(node, found) if is_op(node, "Concat") else _elementwise(node, found)
        return (elsewhere, *(None,) * (len(node.outputs) - 1))
    name = name_of(node.outputs[0])
    inputs = [along_channels(spread, name) if isinstance(spread, LabelledSpread) else spread for spread in found]
    result = None
    if any(inputs) and is_op(node, *LAYERS):
        if inputs[0] is not None and seed is not None:
            layers.learn(node, inputs[0], seed.std)
        elif inputs[0] is not None:
            result = layers(node, inputs[0])
    elif any(inputs) and is_op(node, *RULES):
        result = RULES[node.op_type](node, inputs)
    return (result, *(None,) * (len(node.outputs) - 1))


def _elementwise(node: ir.Node, inputs: list[Spread | LabelledSpread | None]) -> LabelledSpread | None:
    """The result of an operator that treats all channels alike, a function or one with a scalar operand; else None."""
    flat = [source.spread if isinstance(source, LabelledSpread) else source for source in inputs]
    source = next(source for source in inputs if isinstance(source, LabelledSpread))
    function = is_op(node, *FUNCTIONS) and not is_op(node, "PRelu")
    scalar = is_op(node, *ELEMENTWISE) and any(scalar_value(value) is not None for value in node.inputs)
    spread = RULES[node.op_type](node, flat) if function or scalar else None
    return None if spread is None else LabelledSpread(spread=spread, labels=source.labels)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _seeded(value: ir.Value, seed: Moments | Spread, result: Spread | LabelledSpread | None) -> Spread:
    """The mean and deviation of `seed`, with the shape of `result`, which the rules gave, if any; else normal."""
    if isinstance(seed, Spread):
        return seed
    if isinstance(result, Spread) and result.points.shape[:-1] == seed.mean.shape and (result.std > 0).all():
        points = (result.points - result.mean[:, None]) * (seed.std / result.std)[:, None] + seed.mean[:, None]
        return Spread(points=points, origin=name_of(value), approximate=seed.approximate)
    return Spread.normal(seed.mean, seed.std, origin=name_of(value), approximate=seed.approximate)


def _fits(value: ir.Value, spread: Spread) -> bool:
    """Whether a spread is finite and has as many channels as the value's shape says, where it says so."""
    channels = None if value.shape is None or len(value.shape) < 2 else value.shape[1]
    fits = not isinstance(channels, int) or channels == len(spread.points)
    return fits and bool(np.isfinite(spread.points).all())
