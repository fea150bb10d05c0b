"""Operators that are several in one, as the plain ones that they stand for: what ONNX Runtime's own optimizer fuses
(domain com.microsoft), and ONNX's Attention and Einsum.

A file that was saved optimized holds its convolutions as FusedConv, which no pass and no other runtime knows. The
products inside of an Attention would stay float.
"""

import logging
from collections.abc import Callable, Sequence

import onnx_ir as ir

from passes.canonical.attention import attention, multi_head_attention, packed_attention, skip_layer_normalization
from passes.canonical.chain import Chain, input_slots
from passes.canonical.einsum import matrix_product
from passes.graph.editing import FreshNames, rank

logger = logging.getLogger(__name__)

DOMAIN = "com.microsoft"
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_GEMM = ("alpha", "beta", "transA", "transB")


def lower_fused(graph: ir.Graph) -> int:
    """Rewrites FusedConv, FusedGemm, FusedMatMul, the variants of Gelu and of attention, SkipLayerNormalization, and
    Einsum where it is a product of matrices. How many.

    What has a form without counterpart (transposed batch axes) stays, and is computed in float.
    """
    names, count = FreshNames(graph), 0
    for node in graph:
        lower = (_LOWER if node.domain == DOMAIN else _LOWER_STANDARD).get(node.op_type)
        if lower is None or node.domain not in (DOMAIN, "", "ai.onnx"):
            continue
        chain = Chain(graph, node, names)
        if lower(node, chain) is None:
            chain.give_up()
            continue
        chain.finish()
        logger.debug("%s %s becomes %s", node.op_type, node.name, ", ".join(chain.op_types))
        count += 1
    return count


def _kept(node: ir.Node, names: Sequence[str]) -> dict[str, ir.Attr]:
    return {name: node.attributes[name] for name in names if name in node.attributes}


def _conv(node: ir.Node, chain: Chain) -> Chain | None:
    x, weight, bias, summed = input_slots(node, 4)
    found = chain.add("Conv", [x, weight] + ([] if bias is None else [bias]), _kept(node, _CONV))
    if summed is not None:
        found = chain.add("Add", [found, summed])
    parameters = node.attributes.get("activation_params")
    numbers = [] if parameters is None else list(parameters.as_floats())
    return _activated(chain, found, node.attributes.get_string("activation", ""), numbers)


def _gemm(node: ir.Node, chain: Chain) -> Chain | None:
    a, b, c = input_slots(node, 3)
    found = chain.add("Gemm", [a, b] + ([] if c is None else [c]), _kept(node, _GEMM))
    numbers = [
        node.attributes[name].as_float()
        for name in ("activation_alpha", "activation_beta", "activation_gamma")
        if name in node.attributes
    ]
    return _activated(chain, found, node.attributes.get_string("activation", ""), numbers)


def _activated(chain: Chain, x: ir.Value, activation: str, numbers: Sequence[float]) -> Chain | None:
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


def _matmul(node: ir.Node, chain: Chain) -> Chain | None:
    a, b = input_slots(node, 2)
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


def _gelu(node: ir.Node, chain: Chain) -> Chain | None:
    if (node.graph is not None and node.graph.opset_imports.get("", 0)) < 20:
        return None
    x, bias = input_slots(node, 2)
    if bias is not None:
        x = chain.add("Add", [x, bias])
    form = "tanh" if node.op_type == "FastGelu" else "none"
    chain.add("Gelu", [x], {"approximate": ir.AttrString("approximate", form)})
    return chain


def _quick_gelu(node: ir.Node, chain: Chain) -> Chain | None:
    x = node.inputs[0]
    alpha = node.attributes.get_float("alpha", 1.702)
    gate = chain.add("Sigmoid", [x if alpha == 1.0 else chain.add("Mul", [x, chain.number(alpha)])])
    chain.add("Mul", [x, gate])
    return chain


_LOWER: dict[str, Callable[[ir.Node, Chain], Chain | None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _gelu,
    "QuickGelu": _quick_gelu,
    "Attention": packed_attention,
    "MultiHeadAttention": multi_head_attention,
    "SkipLayerNormalization": skip_layer_normalization,
}
_LOWER_STANDARD: dict[str, Callable[[ir.Node, Chain], Chain | None]] = {
    "Attention": attention,
    "Einsum": matrix_product,
}
