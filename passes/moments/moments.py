"""Mean and standard deviation of activations without data: from batch normalization through what follows it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.batch_norm import read_batch_norms
from passes.graph.editing import as_float64, is_op, name_of, scalar_value
from passes.graph.operators import ELEMENTWISE, LAYERS
from passes.moments.layers import LayerSpreads
from passes.moments.moves import MOVES, Moved, along_channels, joined, moved
from passes.moments.rules import FUNCTIONS, RULES
from passes.moments.spread import Spread


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Of one value per channel (axis 1), over images and positions, in the value's own unit.

    approximate: more was assumed than that the channels in front of an activation are normal: that two values are
    independent, or that a pooling changes nothing.
    """

    mean: NDArray[np.float64]  # (C,)
    std: NDArray[np.float64]  # (C,)
    approximate: bool = False

    def scaled(self, factor: NDArray[np.float64]) -> "Moments":
        """Of the value times `factor` (C,)."""
        return Moments(mean=self.mean * factor, std=self.std * np.abs(factor), approximate=self.approximate)

    def lowered(self, amount: NDArray[np.float64]) -> "Moments":
        """Of the value less `amount` (C,)."""
        return Moments(mean=self.mean - amount, std=self.std, approximate=self.approximate)

    def taken(self, channels: NDArray[np.int64]) -> "Moments":
        """Of a value whose channels are these of the old one, (C',)."""
        return Moments(mean=self.mean[channels], std=self.std[channels], approximate=self.approximate)


def changed(
    known: Mapping[str, Moments], by: Mapping[str, NDArray[Any]], how: Callable[[Moments, NDArray[Any]], Moments]
) -> dict[str, Moments]:
    """`known` after an edit of the graph that changed the values that `by` names.

    changed(known, scales, Moments.scaled) after EqualizeChannels(scales), changed(known, amounts, Moments.lowered)
    after AbsorbHighBias(amounts), changed(known, widened_values(...), Moments.taken) after SplitChannels.
    """
    return {name: how(moments, by[name]) if name in by else moments for name, moments in known.items()}


def batch_norm_moments(model: ir.Model) -> dict[str, Moments]:
    """What the BatchNormalization nodes say: of their inputs the running statistics, of their outputs beta and |gamma|.

    By value name. FoldBatchNorm keeps the names, so what is read before it serves the folded model as `known`.
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


def activation_moments(model: ir.Model, known: Mapping[str, Moments | Spread] | None = None) -> dict[str, Moments]:
    """Moments by value name, of every value for which they can be told.

    Start: the batch normalizations of `model`, and `known` (Moments of normal values, or Spreads: the image, or, where
    the batch normalizations are folded, what `batch_norm_moments` read before). From there through activation functions
    (clipped-normal moments, DFQ, arXiv 1906.04721, appendix C, by quadrature for any function), sums and products of
    independent values, Concat, Split, channel shuffles, poolings, and layers without normalization (`LayerSpreads`). A
    value that none of this reaches is absent. Channel axis 1; a Gemm's features are its channels.
    """
    return {
        name: Moments(mean=spread.mean, std=spread.std, approximate=spread.approximate)
        for name, spread in spreads(model, known)
    }


def spreads(model: ir.Model, known: Mapping[str, Moments | Spread] | None = None) -> Iterator[tuple[str, Spread]]:
    """What `activation_moments` is computed from, in graph order: how the values of each channel spread."""
    for name, found in value_spreads(model, known):
        if isinstance(found, Spread):
            yield name, found


def value_spreads(
    model: ir.Model, known: Mapping[str, Moments | Spread] | None = None
) -> Iterator[tuple[str, Spread | Moved]]:
    """As `spreads`; and also values whose axis 1 is not that of the channels, as in front of a detector's output.

    Memory: of the values that a later node still reads.
    """
    seeds = batch_norm_moments(model) | dict(known or {})
    alive: dict[ir.Value, Spread | Moved] = {}
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
    node: ir.Node, alive: Mapping[ir.Value, Spread | Moved], layers: LayerSpreads, seed: Moments | Spread | None
) -> tuple[Spread | Moved | None, ...]:
    """One for each output. `seed`: what is known of the first one."""
    found = [None if value is None else alive.get(value) for value in node.inputs]
    if found and found[0] is not None and is_op(node, *MOVES):
        return moved(node, found[0])
    if any(isinstance(spread, Moved) for spread in found) and not is_op(node, *LAYERS):
        elsewhere = joined(node, found) if is_op(node, "Concat") else _elementwise(node, found)
        return (elsewhere, *(None,) * (len(node.outputs) - 1))
    name = name_of(node.outputs[0])
    inputs = [along_channels(spread, name) if isinstance(spread, Moved) else spread for spread in found]
    result = None
    if any(inputs) and is_op(node, *LAYERS):
        if inputs[0] is not None and seed is not None:
            layers.learn(node, inputs[0], seed.std)
        elif inputs[0] is not None:
            result = layers(node, inputs[0])
    elif any(inputs) and is_op(node, *RULES):
        result = RULES[node.op_type](node, inputs)
    return (result, *(None,) * (len(node.outputs) - 1))


def _elementwise(node: ir.Node, inputs: list[Spread | Moved | None]) -> Moved | None:
    """Of a value whose channels are elsewhere: by what treats all channels alike, a function or a scalar operand."""
    flat = [source.spread if isinstance(source, Moved) else source for source in inputs]
    source = next(source for source in inputs if isinstance(source, Moved))
    function = is_op(node, *FUNCTIONS) and not is_op(node, "PRelu")
    scalar = is_op(node, *ELEMENTWISE) and any(scalar_value(value) is not None for value in node.inputs)
    spread = RULES[node.op_type](node, flat) if function or scalar else None
    return None if spread is None else Moved(spread=spread, labels=source.labels)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _seeded(value: ir.Value, seed: Moments | Spread, result: Spread | Moved | None) -> Spread:
    """The mean and deviation that are known, and the shape that was worked out, if any; else normal."""
    if isinstance(seed, Spread):
        return seed
    if isinstance(result, Spread) and result.points.shape[:-1] == seed.mean.shape and (result.std > 0).all():
        points = (result.points - result.mean[:, None]) * (seed.std / result.std)[:, None] + seed.mean[:, None]
        return Spread(points=points, origin=name_of(value), approximate=seed.approximate)
    return Spread.normal(seed.mean, seed.std, origin=name_of(value), approximate=seed.approximate)


def _fits(value: ir.Value, spread: Spread) -> bool:
    """Whether the channels that were worked out are finite and agree with the value's shape, as far as it is known."""
    channels = None if value.shape is None or len(value.shape) < 2 else value.shape[1]
    fits = not isinstance(channels, int) or channels == len(spread.points)
    return fits and bool(np.isfinite(spread.points).all())
