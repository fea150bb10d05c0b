"""What the tests of Canonicalize share."""

import numpy as np

RNG = np.random.default_rng(0)


def rand(*shape):
    return RNG.normal(0, 1, shape).astype(np.float32)


def f32(number):
    return np.array(number, dtype=np.float32)


def i64(*numbers):
    return np.array(numbers, dtype=np.int64)


def only(model, op_type):
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


PADDED = "(float[N,3,8,8] x) => (float[N,{channels},h,w] y) {{ p = {pad} y = {reader} }}"

ZERO_BORDER = i64(0, 0, 1, 2, 0, 0, 3, 0)
