"""A budget of answers that may change: choices in the order of their price, and the first that holds."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from onnxdfq.budget.costs import Layer
from onnxdfq.recipe.bits import FLOAT_BITS, LayerBits
from onnxdfq.recipe.budget import Budget

WIDE_ACTIVATION = 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Widths of layers, and those that stay float.

    bits: by node name; a layer without an entry has what holds for all. floats: names of nodes. activation: what holds
    for all activations instead, None for as it is.
    """

    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    activation: int | None = None


@dataclass(frozen=True, kw_only=True)
class Widths:
    """What holds for all layers, and the widest that a layer may have instead. wide_activation: None where the target
    takes none of 16 bits. wide_weight: None where weights are not to change."""

    weight: int
    activation: int
    wide_activation: int | None
    wide_weight: int | None


def raised(
    base: Choice, layers: tuple[Layer, ...], worst: list[str], widths: Widths, others: Iterable[str] = ()
) -> list[Choice]:
    """From `base` on: one layer more at each step, the worst first, reads 16 bits; then whatever is between layers has
    16; then one layer more at each step stays float, and in the end all but the least harmful.

    Args:
        layers: of the network. worst: their names, the most harmful first. others: names of nodes that are no layers.
    """
    steps = [base]
    if widths.wide_activation is not None or widths.wide_weight is not None:
        steps += [_wide(base, layers, set(worst[:count]), widths) for count in range(1, len(worst) + 1)]
    top = replace(steps[-1], activation=widths.wide_activation)
    steps += [] if widths.wide_activation is None else [top]
    steps += [replace(top, floats=frozenset(worst[:count])) for count in range(1, len(worst))]
    steps.append(replace(top, floats=frozenset([*worst[:-1], *others])))
    return [_without_floats(step) for step in steps]


def _without_floats(choice: Choice) -> Choice:
    return replace(choice, bits={name: bits for name, bits in choice.bits.items() if name not in choice.floats})


def _wide(base: Choice, layers: tuple[Layer, ...], names: set[str], widths: Widths) -> Choice:
    """Layers that read one value share its width."""
    sources = {layer.source for layer in layers if layer.node in names} - {None}
    bits = dict(base.bits)
    for layer in layers:
        found = bits.get(layer.node, LayerBits())
        if layer.source in sources and widths.wide_activation is not None:
            found = replace(found, activation=widths.wide_activation)
        if layer.node in names and widths.wide_weight is not None:
            found = replace(found, weight=widths.wide_weight)
        if found != LayerBits():
            bits[layer.node] = found
    return replace(base, bits=bits)


def cost_of(choice: Choice, layers: tuple[Layer, ...], widths: Widths, budget: Budget) -> float:
    """Bytes of weights and scales, or bit operations; what stays float has 32 bits."""
    weights, activations = {}, {}
    for layer in layers:
        bits = choice.bits.get(layer.node, LayerBits())
        is_float = layer.node in choice.floats
        weights[layer.node] = FLOAT_BITS if is_float else bits.weight or widths.weight
        activations[layer.node] = (
            FLOAT_BITS
            if is_float or layer.source is None
            else bits.activation or choice.activation or widths.activation
        )
    if budget.kind == "size":
        return sum(layer.bits_at(weights[layer.node]) for layer in layers) / 8
    return float(sum(layer.macs * weights[layer.node] * activations[layer.node] for layer in layers))


def first_that_holds(count: int, holds: Callable[[int], bool]) -> int | None:
    """The first of 0 to count - 1 that holds, supposing that whatever follows one that holds does so, too; None where
    not even the last does. `holds` is asked about log2(count) times."""
    if not count or not holds(count - 1):
        return None
    low, high = 0, count - 1  # the last of these holds
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
