"""Attention in one operator, and the normalization around it, as plain products, so that these can be quantized."""

import math

import numpy as np
import onnx_ir as ir

from passes.canonical.chain import Chain, input_slots
from passes.graph.editing import constant_value, rank

BY_HEAD, KEYS_BY_HEAD = (0, 2, 1, 3), (0, 2, 3, 1)  # from (N, tokens, heads, D)
FLOAT = ir.DataType.FLOAT.value


def attention(node: ir.Node, chain: Chain) -> Chain | None:
    """Attention of ONNX (opset 23 and later), without what only decoders have: a past, causality, padded keys.

    None too where heads share keys, scores are limited, or it is not known whether the mask is as long as the keys.
    """
    query, key, value, mask, *past = input_slots(node, 7)
    attributes = node.attributes
    axes, keys_axes = rank(query), rank(key)
    special = [
        attributes.get_int("is_causal", 0) != 0,
        attributes.get_float("softcap", 0.0) != 0,
        attributes.get_int("softmax_precision", FLOAT) != FLOAT,
        *(attributes.get_int(f"{side}_window_size", -1) >= 0 for side in ("left", "right")),
    ]
    if query is None or key is None or value is None or any(special) or any(past):
        return None
    if axes not in (3, 4) or axes != keys_axes or _more_is_read(node):
        return None
    if mask is not None and not (rank(mask) and _size(mask, -1) == _size(key, -2) > 0):  # a short one is filled up
        return None
    if mask is not None and mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        return None
    if axes == 3:
        heads, key_heads = attributes.get_int("q_num_heads", 0), attributes.get_int("kv_num_heads", 0)
    else:
        heads, key_heads = _size(query, 1), _size(key, 1)
    size = _size(query, -1) // (max(heads, 1) if axes == 3 else 1)
    if not heads or heads != key_heads or not size:
        return None
    scale = attributes.get_float("scale", 1 / math.sqrt(size))
    return _attend(chain, query, key, value, heads=heads if axes == 3 else None, scale=scale, mask=mask)


def multi_head_attention(node: ir.Node, chain: Chain) -> Chain | None:
    """MultiHeadAttention of ONNX Runtime with a query, a key and a value (N, tokens, heads · D) of its own each."""
    query, key, value, bias, padding, mask, *past = input_slots(node, 10)
    heads = node.attributes.get_int("num_heads", 0)
    biases = constant_value(bias)
    if query is None or key is None or value is None or not heads or rank(query) != 3 or rank(key) != 3:
        return None
    if padding is not None or any(past) or node.attributes.get_int("unidirectional", 0) != 0:
        return None
    hidden = _size(query, -1)
    if _more_is_read(node) or not _is_finite(mask) or not hidden or rank(value) != 3:
        return None
    if bias is not None:
        if biases is None:
            return None
        parts = np.split(biases, [hidden, 2 * hidden])
        query, key, value = (
            chain.add("Add", [part, chain.constant(one)]) for part, one in zip((query, key, value), parts, strict=True)
        )
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(hidden // heads)
    return _attend(chain, query, key, value, heads=heads, scale=scale, mask=mask)


def packed_attention(node: ir.Node, chain: Chain) -> Chain | None:
    """Attention of ONNX Runtime, which holds the weights of query, key and value side by side: (C, 3 · heads · D)."""
    x, weight, bias, padding, past, mask, *more = input_slots(node, 7)
    heads = node.attributes.get_int("num_heads", 0)
    weights, biases = constant_value(weight), constant_value(bias)
    special = any(node.attributes.get_int(name, 0) for name in ("unidirectional", "do_rotary"))
    if padding is not None or past is not None or any(more) or special or "qkv_hidden_sizes" in node.attributes:
        return None
    if x is None or weights is None or not heads or _more_is_read(node) or not _is_finite(mask):
        return None
    if bias is not None and biases is None:
        return None
    parts = [chain.add("MatMul", [x, chain.constant(np.ascontiguousarray(one))]) for one in np.split(weights, 3, 1)]
    if biases is not None:
        pairs = zip(parts, np.split(biases, 3), strict=True)
        parts = [chain.add("Add", [part, chain.constant(one)]) for part, one in pairs]
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(weights.shape[1] // 3 // heads)
    return _attend(chain, *parts, heads=heads, scale=scale, mask=mask)


def skip_layer_normalization(node: ir.Node, chain: Chain) -> Chain | None:
    """SkipLayerNormalization of ONNX Runtime: a sum, which may be read itself, and the LayerNormalization of it."""
    x, skip, scale, shift, bias = input_slots(node, 5)
    moments, sums = node.outputs[1:3], node.outputs[3:4]
    if any(value.uses() or value.is_graph_output() for value in moments):
        return None
    if any(value.is_graph_output() for value in sums):
        return None
    total = chain.add("Add", [x, skip])
    if bias is not None:
        total = chain.add("Add", [total, bias])
    for value in sums:
        value.replace_all_uses_with(total)
    epsilon = ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-12))
    inputs = [total, scale] if shift is None else [total, scale, shift]
    chain.add("LayerNormalization", inputs, {"epsilon": epsilon, "axis": ir.AttrInt64("axis", -1)})
    return chain


def _attend(
    chain: Chain,
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    *,
    heads: int | None,
    scale: float,
    mask: ir.Value | None,
) -> Chain:
    """softmax(scale · Q Kᵀ + mask) V. heads: of inputs (N, tokens, heads · D); None of (N, heads, tokens, D).

    The scale stands right behind the query, where the layer that computes it can take it in. A query that sees no key
    attends to nothing, as in ONNX Runtime.
    """
    query = chain.add("Mul", [query, chain.number(scale)])
    if heads is None:
        key = _turned(chain, key, (0, 1, 3, 2))
    else:
        split = chain.integers(0, 0, heads, -1)
        query, key, value = (
            _turned(chain, chain.add("Reshape", [part, split]), order)
            for part, order in ((query, BY_HEAD), (key, KEYS_BY_HEAD), (value, BY_HEAD))
        )
    scores = chain.add("MatMul", [query, key])
    added = _added(chain, mask)
    if added is not None:
        scores = chain.add("Add", [scores, added])
    weights = chain.add("Softmax", [scores], {"axis": ir.AttrInt64("axis", -1)})
    if not _is_finite(added):
        nothing = chain.add("IsNaN", [weights], dtype=ir.DataType.BOOL)
        weights = chain.add("Where", [nothing, chain.number(0.0), weights])
    found = chain.add("MatMul", [weights, value])
    if heads is not None:
        chain.add("Reshape", [_turned(chain, found, BY_HEAD), chain.integers(0, 0, -1)])
    return chain


def _added(chain: Chain, mask: ir.Value | None) -> ir.Value | None:
    """What is added to scores for a mask, which may say True for each key that is seen; None where all are."""
    array = constant_value(mask)
    if mask is None or mask.dtype != ir.DataType.BOOL:
        return mask
    if array is None:
        return chain.add("Where", [mask, chain.number(0.0), chain.number(-math.inf)])
    return None if array.all() else chain.constant(np.where(array, np.float32(0), np.float32(-np.inf)))


def _turned(chain: Chain, value: ir.Value, order: tuple[int, ...]) -> ir.Value:
    return chain.add("Transpose", [value], {"perm": ir.AttrInt64s("perm", order)})


def _size(value: ir.Value, axis: int) -> int:
    """0 where it is not known."""
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else 0


def _more_is_read(node: ir.Node) -> bool:
    """Whether anything but the first output is."""
    return any(tuple(value.uses()) or value.is_graph_output() for value in node.outputs[1:])


def _is_finite(mask: ir.Value | None) -> bool:
    """Whether a mask, if there is one, is a constant that is added and hides no key for good."""
    array = constant_value(mask)
    return mask is None or (array is not None and array.dtype == np.float32 and bool(np.isfinite(array).all()))
