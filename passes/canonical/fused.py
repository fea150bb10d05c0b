"""Operators that ONNX Runtime's own optimizer fuses (domain com.microsoft), as the standard ones that they stand for.

A file that was saved optimized holds its convolutions as FusedConv, which no pass and no other runtime knows.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, add_initializer, rank, replace_with

logger = logging.getLogger(__name__)

DOMAIN = "com.microsoft"
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_GEMM = ("alpha", "beta", "transA", "transB")


def lower_fused(graph: ir.Graph) -> int:
    """Rewrites FusedConv, FusedGemm, FusedMatMul and the variants of Gelu. How many.

    What has a form without counterpart (transposed batch axes) stays, and is computed in float.
    """
    names, count = FreshNames(graph), 0
    for node in graph:
        lower = _LOWER.get(node.op_type) if node.domain == DOMAIN else None
        if lower is None:
            continue
        chain = _Chain(graph, node, names)
        if lower(node, chain) is None:
            chain.give_up()
            continue
        chain.finish()
        logger.debug("%s %s becomes %s", node.op_type, node.name, ", ".join(chain.op_types))
        count += 1
    return count


class _Chain:
    """Nodes in the place of one: each reads, as a rule, what the one before it computes."""

    def __init__(self, graph: ir.Graph, old: ir.Node, names: FreshNames) -> None:
        self._graph, self._old, self._names = graph, old, names
        self._nodes: list[ir.Node] = []

    @property
    def op_types(self) -> list[str]:
        """In order."""
        return [node.op_type for node in self._nodes]

    def add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, ir.Attr] | None = None
    ) -> ir.Value:
        """One more node; its output."""
        base = f"{self._old.name or self._old.op_type}.{op_type}"
        node = ir.node(op_type, inputs, name=self._names(base))
        node.attributes.update(attributes or {})
        node.outputs[0].name = self._names(f"{base}_output")
        node.outputs[0].dtype = ir.DataType.FLOAT
        self._nodes.append(node)
        return node.outputs[0]

    def number(self, value: float) -> ir.Value:
        """A scalar as an initializer."""
        return add_initializer(self._graph, self._names(f"{self._old.name}.constant"), np.array(value, np.float32))

    def finish(self) -> None:
        """The last node takes the place of the old one."""
        for node in self._nodes[:-1]:
            self._graph.insert_before(self._old, node)
        replace_with(self._old, self._nodes[-1])

    def give_up(self) -> None:
        """No node of the chain reads anything any more, so that readers can be counted."""
        for node in self._nodes:
            node.resize_inputs(0)


def _inputs(node: ir.Node, count: int) -> list[ir.Value | None]:
    return [*node.inputs, *[None] * count][:count]


def _kept(node: ir.Node, names: Sequence[str]) -> dict[str, ir.Attr]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _conv(node: ir.Node, chain: _Chain) -> _Chain | None:
    x, weight, bias, summed = _inputs(node, 4)
    found = chain.add("Conv", [x, weight] + ([] if bias is None else [bias]), _kept(node, _CONV))
    if summed is not None:
        found = chain.add("Add", [found, summed])
    parameters = node.attributes.get("activation_params")
    numbers = [] if parameters is None else list(parameters.as_floats())
    return _activated(chain, found, node.attributes.get_string("activation", ""), numbers)


def _gemm(node: ir.Node, chain: _Chain) -> _Chain | None:
    a, b, c = _inputs(node, 3)
    found = chain.add("Gemm", [a, b] + ([] if c is None else [c]), _kept(node, _GEMM))
    numbers = [
        node.attributes[name].as_float()
        for name in ("activation_alpha", "activation_beta", "activation_gamma")
        if name in node.attributes
    ]
    return _activated(chain, found, node.attributes.get_string("activation", ""), numbers)


def _activated(chain: _Chain, x: ir.Value, activation: str, numbers: Sequence[float]) -> _Chain | None:
    match activation:
        case "":
            return chain
        case "Relu" | "Sigmoid" | "Tanh" | "Softplus" | "Softsign" | "HardSwish":
            chain.add(activation, [x])
        case "LeakyRelu" | "Elu" | "ThresholdedRelu" if len(numbers) >= 1:
            chain.add(activation, [x], {"alpha": ir.AttrFloat32("alpha", numbers[0])})
        case "HardSigmoid" if len(numbers) >= 2:
            alpha, beta = ir.AttrFloat32("alpha", numbers[0]), ir.AttrFloat32("beta", numbers[1])
            chain.add(activation, [x], {"alpha": alpha, "beta": beta})
        case "Clip" if len(numbers) >= 2:
            chain.add("Clip", [x, chain.number(numbers[0]), chain.number(numbers[1])])
        case _:
            return None
    return chain


def _matmul(node: ir.Node, chain: _Chain) -> _Chain | None:
    a, b = _inputs(node, 2)
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return None
    turned: list[ir.Value | None] = []
    for value, name in ((a, "transA"), (b, "transB")):
        axes = rank(value)
        if not node.attributes.get_int(name, 0) or value is None:
            turned.append(value)
        elif axes is None or axes < 2:
            return None
        else:
            order = [*range(axes - 2), axes - 1, axes - 2]
            turned.append(chain.add("Transpose", [value], {"perm": ir.AttrInt64s("perm", order)}))
    found = chain.add("MatMul", turned)
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha != 1.0:
        chain.add("Mul", [found, chain.number(alpha)])
    return chain


def _gelu(node: ir.Node, chain: _Chain) -> _Chain | None:
    if (node.graph is not None and node.graph.opset_imports.get("", 0)) < 20:
        return None
    x, bias = _inputs(node, 2)
    if bias is not None:
        x = chain.add("Add", [x, bias])
    form = "tanh" if node.op_type == "FastGelu" else "none"
    chain.add("Gelu", [x], {"approximate": ir.AttrString("approximate", form)})
    return chain


def _quick_gelu(node: ir.Node, chain: _Chain) -> _Chain | None:
    x = node.inputs[0]
    alpha = node.attributes.get_float("alpha", 1.702)
    gate = chain.add("Sigmoid", [x if alpha == 1.0 else chain.add("Mul", [x, chain.number(alpha)])])
    chain.add("Mul", [x, gate])
    return chain


_LOWER: dict[str, Callable[[ir.Node, _Chain], _Chain | None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
    "QuickGelu": _quick_gelu,
}
