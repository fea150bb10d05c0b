"""Attention is found in the forms that exporters write, and nothing else is taken for it."""

import numpy as np
import pytest

from passes.canonical.canonicalize import Canonicalize
from passes.graph.attention import find_attention, is_transformer

from ...graphs import build

WEIGHT = np.ones((4, 4), np.float32)
HEADS = "(float[N,2,5,4] q, float[N,2,4,5] k, float[N,2,5,4] v{more}) => (float[N,2,{rows},{columns}] y) {{ {body} }}"
FORMS = {
    "plain": "s = MatMul (q, k) p = Softmax <axis=-1> (s) y = MatMul (p, v)",
    "scaled": "c = Constant <value_float=0.5> () s = MatMul (q, k) t = Mul (s, c) p = Softmax <axis=-1> (t) "
    "y = MatMul (p, v)",
    "masked": "s = MatMul (q, k) t = Add (m, s) p = Softmax <axis=-1> (t) y = MatMul (p, v)",
    "moved": "i = Constant <value_ints=[-1,5,5]> () o = Constant <value_ints=[-1,2,5,5]> () s = MatMul (q, k) "
    "t = Reshape (s, i) p = Softmax <axis=-1> (t) w = Reshape (p, o) y = MatMul (w, v)",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_of_one_attention(form: str) -> None:
    more = ", float[1,1,5,5] m" if form == "masked" else ""
    model = build(HEADS.format(more=more, rows=5, columns=4, body=FORMS[form]))
    Canonicalize()(model)
    (found,) = find_attention(model.graph)
    assert (found.weights.name, found.output.name, found.transposed) == ("p", "y", False)
    assert is_transformer(model.graph)


def test_values_that_are_multiplied_from_the_left() -> None:
    body = (
        "s = MatMul (q, k) p = Softmax <axis=-1> (s) t = Transpose <perm=[0,1,3,2]> (p) "
        "u = Transpose <perm=[0,1,3,2]> (v) y = MatMul (u, t)"
    )
    (found,) = find_attention(build(HEADS.format(more="", rows=4, columns=5, body=body)).graph)
    assert (found.weights.name, found.output.name, found.transposed) == ("p", "y", True)


@pytest.mark.parametrize(
    "body",
    [
        "s = MatMul (x, w) p = Softmax <axis=-1> (s) y = Mul (p, x)",  # a gate
        "s = MatMul (x, w) p = Softmax <axis=-1> (s) y = MatMul (p, x)",  # scores of a layer
        "t = Transpose <perm=[0,2,1]> (x) s = MatMul (x, t) p = Softmax <axis=-1> (s) y = MatMul (p, w)",
        "s = MatMul (x, x) y = MatMul (s, x)",  # no Softmax
    ],
)
def test_what_is_none(body: str) -> None:
    model = build(f"(float[N,4,4] x) => (float[N,4,4] y) {{ {body} }}", w=WEIGHT)
    assert not find_attention(model.graph) and not is_transformer(model.graph)


def test_one_attention_among_convolutions_makes_no_transformer() -> None:
    body = (
        "c = Conv <kernel_shape=[1,1]> (x, w) d = Conv <kernel_shape=[1,1]> (c, w) "
        "s = MatMul (d, d) p = Softmax <axis=-1> (s) y = MatMul (p, d)"
    )
    model = build(f"(float[N,4,4,4] x) => (float[N,4,4,4] y) {{ {body} }}", w=WEIGHT.reshape(4, 4, 1, 1))
    assert len(find_attention(model.graph)) == 1 and not is_transformer(model.graph)
