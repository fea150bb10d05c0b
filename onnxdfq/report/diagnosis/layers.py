"""The layers of a QDQ network: each quantizer belongs to one."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.report.diagnosis.switches import Network
from passes.graph.editing import is_op, name_of, sole_consumer
from passes.graph.operators import ACTIVATIONS, LAYERS, LINEAR, MOVEMENTS
from passes.quantize.quantizers import Quantizer

INPUT = "Input"


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A node, and what is quantized of it.

    name: as people call it; that of an input for what quantizes the input. node: None for an input. weight, bias: names
    of initializers that `Network.constants` or the file's quantized constants hold; "" for none. others: further
    constants. activations: quantizers of what it computes, its activation function included; repeats: others on the
    same grid, behind what only moves numbers, which change nothing. reads: quantizers of what it reads.
    """

    name: str
    op_type: str
    node: ir.Node | None
    weight: str
    bias: str
    others: tuple[str, ...]
    activations: tuple[str, ...]
    repeats: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def parts(self) -> frozenset[str]:
        """All that is quantized of it."""
        return self.constants.union(self.activations, self.repeats)

    @property
    def constants(self) -> frozenset[str]:
        """Weight, bias and others."""
        return frozenset(name for name in (self.weight, self.bias, *self.others) if name)


def layers_of(network: Network, titles: Mapping[str, str], quantized: frozenset[str]) -> tuple[Layer, ...]:
    """In graph order, each node that something quantized belongs to, those in bodies among them.

    Args:
        network: To look at.
        titles: Output name → what people call its node.
        quantized: Names of quantized constants.
    """
    graph = network.model.graph
    values = {name_of(value): value for node in graph.all_nodes() for value in node.outputs}
    values |= {name_of(value): value for one in (graph, *graph.subgraphs()) for value in one.inputs}
    leaders = _leaders(network, values)
    owned: dict[ir.Node | str, list[str]] = {}
    for name in network.quantizers.keys() - leaders.keys():
        owned.setdefault(_owner(network, values, network.quantizers[name].source), []).append(name)
    order = {name: place for place, name in enumerate(network.quantizers)}
    owned = {owner: sorted(names, key=order.__getitem__) for owner, names in owned.items()}
    repeats = {
        owner: tuple(name for name, leader in leaders.items() if leader in names) for owner, names in owned.items()
    }
    found = [
        Layer(
            name=key,
            op_type=INPUT,
            node=None,
            weight="",
            bias="",
            others=(),
            activations=tuple(names),
            repeats=repeats[key],
            reads=(),
        )
        for key, names in owned.items()
        if isinstance(key, str)
    ]
    known = quantized | network.constants.keys()
    for node in graph.all_nodes():
        if is_op(node, "Identity", "Clip") and name_of(node.outputs[0]) in network.quantizers:
            continue
        weight, bias, others = _constants(node, known)
        if weight or bias or others or node in owned:
            found.append(
                Layer(
                    name=titles.get(name_of(node.outputs[0]), name_of(node)),
                    op_type=node.op_type,
                    node=node,
                    weight=weight,
                    bias=bias,
                    others=others,
                    activations=tuple(owned.get(node, ())),
                    repeats=repeats.get(node, ()),
                    reads=tuple(dict.fromkeys(filter(None, (_quantizer_before(v, network) for v in node.inputs)))),
                )
            )
    return tuple(found)


def _leaders(network: Network, values: Mapping[str, ir.Value]) -> dict[str, str]:
    """Quantizer → an earlier one that leaves it nothing to round: the same numbers, moved, on the same grid."""
    found: dict[str, str] = {}
    for name, quantizer in network.quantizers.items():
        before = _quantizer_before(values[quantizer.source], network)
        first = network.quantizers.get(before)
        if first is not None and first.grid.same_as(quantizer.grid) and first.back.same_as(quantizer.back):
            found[name] = found.get(before, before)
    return found


def _owner(network: Network, values: Mapping[str, ir.Value], source: str) -> ir.Node | str:
    """The node that a quantizer of a value belongs to: the layer in front of an activation function of its own. What is
    quantized already, as a body may find it, belongs where it was."""
    value = values[source]
    while (quantized := _behind_identities(value, network)) is not None:
        value = values[quantized.source]
    node = value.producer()
    if node is None:
        return name_of(value)
    before = node.inputs[0] if node.inputs else None
    layer = None if before is None else before.producer()
    if is_op(node, *ACTIVATIONS) and not is_op(node, "Softmax") and before is not None and is_op(layer, *LINEAR, "Add"):
        return layer if layer is not None and sole_consumer(before) is node else node
    return node


def _behind_identities(value: ir.Value, network: Network) -> Quantizer | None:
    """The quantizer whose value it is, as it stands there or behind an Identity."""
    while name_of(value) not in network.quantizers:
        node = value.producer()
        if not is_op(node, "Identity") or node is None or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return network.quantizers[name_of(value)]


def _constants(node: ir.Node, known: frozenset[str]) -> tuple[str, str, tuple[str, ...]]:
    weight = bias = ""
    others = []
    for place, value in enumerate(node.inputs):
        name = _initializer(value, known)
        if not name:
            continue
        if is_op(node, *LINEAR) and place < 2 and not weight:
            weight = name
        elif is_op(node, *LAYERS) and place == 2:
            bias = name
        elif value is not None and value.is_initializer():
            others.append(name)
    return weight, bias, tuple(others)


def _initializer(value: ir.Value | None, known: frozenset[str]) -> str:
    """The name of the known constant that a value is, or is moved from."""
    while value is not None:
        if name_of(value) in known:
            return name_of(value)
        node = value.producer()
        if node is None or not is_op(node, *MOVEMENTS):
            return ""
        value = node.inputs[0]
    return ""


def _quantizer_before(value: ir.Value | None, network: Network) -> str:
    """The quantizer that a value comes from, past what only moves numbers."""
    while value is not None and name_of(value) not in network.quantizers:
        node = value.producer()
        value = node.inputs[0] if node is not None and is_op(node, *MOVEMENTS) else None
    return name_of(value)
