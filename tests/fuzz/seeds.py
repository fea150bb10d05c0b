"""Small whole models that are mutated: each a kind of network, of a few kilobytes, and ones of the checkout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"
Array = NDArray[Any]

CNN = """(float[N,3,8,8] image) => (float[N,5] scores) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (image, w)
    b = BatchNormalization (a, scale, shift, mean, var)
    c = Relu (b)
    d = Conv <strides=[2,2], pads=[1,1,1,1]> (c, w2, w2b)
    e = BatchNormalization (d, scale, shift, mean, var)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    scores = Gemm <transB=1> (h, v, vb)
}"""
DEPTHWISE = """(float[1,3,8,8] image) => (float[1,4] scores) {
    a = Conv (image, w)
    b = BatchNormalization (a, scale, shift, mean, var)
    c = Clip (b, low, high)
    d = Conv <group=6, pads=[1,1,1,1]> (c, depth)
    e = BatchNormalization (d, scale, shift, mean, var)
    f = Clip (e, low, high)
    g = Conv (f, point)
    h = Add (g, c)
    i = HardSwish (h)
    j = ReduceMean <keepdims=0> (i, axes)
    scores = MatMul (j, v)
}"""
RECURRENT = """(float[N,4,6] signal) => (float[N,3] scores) {
    a = Transpose <perm=[1,0,2]> (signal)
    b, c, d = LSTM <hidden_size=5> (a, w, r, bias)
    e = Squeeze (c, axes)
    f = Tanh (e)
    scores = Gemm (f, v)
}"""
ATTENTION = """(float[N,6,8] tokens) => (float[N,3] scores) {
    n = LayerNormalization <axis=-1> (tokens, scale, shift)
    q = MatMul (n, wq)
    k = MatMul (n, wk)
    v = MatMul (n, wv)
    t = Transpose <perm=[0,2,1]> (k)
    s = MatMul (q, t)
    d = Div (s, root)
    p = Softmax <axis=-1> (d)
    o = MatMul (p, v)
    r = Add (o, tokens)
    g = Gelu (r)
    m = ReduceMean <keepdims=0> (g, axes)
    scores = Gemm (m, head)
}"""
DECODER = """(float[N,3,8,8] image) => (float[N,2,8,8] mask, int64[N,1,8,8] best) {
    w = Constant <value_float = 0.5> ()
    z = Mul (image, w)
    a = Conv <pads=[1,1,1,1], strides=[2,2]> (z, w1)
    b = LeakyRelu <alpha = 0.1> (a)
    c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)
    d = Resize <mode="nearest"> (c, roi, scales)
    e = Concat <axis=1> (b, d)
    f = ConvTranspose <strides=[2,2]> (e, w2)
    g = Pad (f, pads)
    h = Slice (g, starts, ends, axes)
    s = Shape (h)
    i = Reshape (h, s)
    mask = Sigmoid (i)
    best = ArgMax <axis=1> (mask)
}"""
BRANCHES = """(float[N,2,6,6] image) => (float[N,4,6,6] y) {
    a = Conv <pads=[1,1,1,1]> (image, w)
    m = ReduceMean <keepdims=0> (a)
    c = Greater (m, zero)
    y = If (c) <
        then_branch = yes () => (t) { u = Conv <pads=[1,1,1,1]> (a, w2) t = Relu (u) },
        else_branch = no () => (e) { e = Sigmoid (a) }
    >
}"""
LOOP = """(float[1,2,6,6] image) => (float[1,2,6,6] y) {
    y = Loop (count, yes, image) <
        body = turn (int64 i, bool c, float[1,2,6,6] x) => (bool c2, float[1,2,6,6] x2) {
            c2 = Identity (c)
            h = Conv <pads=[1,1,1,1]> (x, w)
            x2 = Relu (h)
        }
    >
}"""
FUNCTIONS = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
g (float[N,3,8,8] image) => (float[N,4] y) {
    a = local.Block (image, w)
    b = local.Block <slope = 0.2> (a, w2)
    c = GlobalAveragePool (b)
    y = Flatten (c)
}
<domain: "local", opset_import: ["" : 21]>
Block <slope: float = 0.1> (x, w) => (y) {
    a = Conv (x, w)
    y = LeakyRelu <alpha: float = @slope> (a)
}"""
SEVERAL = """(float[N,3,8,8] image, float[N,2] extra, float gain) => (float[N,3] y, float[N,4] h) {
    a = Conv (image, w)
    b = Relu (a)
    c = GlobalMaxPool (b)
    d = Flatten (c)
    h = Mul (d, gain)
    e = Concat <axis=1> (h, extra)
    y = Gemm (e, v)
}"""
IDS = """(int64[N,5] ids) => (float[N,3] y) {
    a = Gather (table, ids)
    b = MatMul (a, w)
    c = Relu (b)
    d = ReduceMax <keepdims=0> (c, axes)
    y = Gemm (d, v)
}"""
BYTES = """(uint8[N,8,8,3] photo) => (float[N,4] y) {
    a = Cast <to=1> (photo)
    b = Div (a, most)
    c = Transpose <perm=[0,3,1,2]> (b)
    d = Conv (c, w)
    e = PRelu (d, slope)
    f = AveragePool <kernel_shape=[8,8]> (e)
    y = Flatten (f)
}"""
QDQ = """(float[N,3,8,8] image) => (float[N,4,8,8] y) {
    q = QuantizeLinear (image, s, z)
    d = DequantizeLinear (q, s, z)
    e = DequantizeLinear (wq, s, wz)
    a = Conv <pads=[1,1,1,1]> (d, e)
    r = Relu (a)
    p = QuantizeLinear (r, s, z)
    y = DequantizeLinear (p, s, z)
}"""


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A model with what it is fed: arrays by input name. files: what lies beside it, by name."""

    name: str
    data: bytes
    feeds: dict[str, Array]
    files: dict[str, bytes] = field(default_factory=dict)
    photographs: bool = False

    def proto(self) -> onnx.ModelProto:
        """A copy to change."""
        return onnx.ModelProto.FromString(self.data)


def _model(text: str, **weights: Array) -> onnx.ModelProto:
    if text.startswith("<"):
        proto = onnx.parser.parse_model(text)
    else:
        graph = onnx.parser.parse_graph("g " + text)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    proto.producer_name = "fuzz"
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    return proto


def _half() -> onnx.ModelProto:
    """The first network in float16."""
    proto = _model(CNN, **_cnn_weights())
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def _external() -> tuple[onnx.ModelProto, dict[str, bytes]]:
    """The first network, its weights in a file of their own."""
    proto, data = _model(CNN, **_cnn_weights()), b""
    for tensor in proto.graph.initializer:
        entries = (("location", "weights.bin"), ("offset", len(data)), ("length", len(tensor.raw_data)))
        for key, value in entries:
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    return proto, {"weights.bin": data}


def _cnn_weights() -> dict[str, Array]:
    return {
        "w": _floats(6, 3, 3, 3),
        "w2": _floats(6, 6, 3, 3),
        "w2b": _floats(6),
        **_norm(6),
        "v": _floats(5, 6),
        "vb": _floats(5),
    }


def _norm(channels: int) -> dict[str, Array]:
    ones = np.ones(channels, np.float32)
    return {"scale": ones, "shift": _floats(channels), "mean": _floats(channels), "var": 0.5 * ones}


def _floats(*shape: int) -> Array:
    return (0.3 * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def _whole(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


BUILDERS: dict[str, Callable[[], onnx.ModelProto]] = {
    "cnn": lambda: _model(CNN, **_cnn_weights()),
    "depthwise": lambda: _model(
        DEPTHWISE, w=_floats(6, 3, 1, 1), **_norm(6), low=np.float32(0), high=np.float32(6),
        depth=_floats(6, 1, 3, 3), point=_floats(6, 6, 1, 1), axes=_whole(2, 3), v=_floats(6, 4),
    ),
    "recurrent": lambda: _model(
        RECURRENT, w=_floats(1, 20, 6), r=_floats(1, 20, 5), bias=_floats(1, 40), axes=_whole(0), v=_floats(5, 3)
    ),
    "attention": lambda: _model(
        ATTENTION, scale=np.ones(8, np.float32), shift=_floats(8), wq=_floats(8, 8), wk=_floats(8, 8),
        wv=_floats(8, 8), root=np.float32(8**0.5), axes=_whole(1), head=_floats(8, 3),
    ),
    "decoder": lambda: _model(
        DECODER, w1=_floats(4, 3, 3, 3), roi=np.empty(0, np.float32), scales=np.array([1, 1, 2, 2], np.float32),
        w2=_floats(8, 2, 2, 2), pads=_whole(0, 0, 1, 1, 0, 0, 1, 1), starts=_whole(1, 1), ends=_whole(9, 9),
        axes=_whole(2, 3),
    ),
    "branches": lambda: _model(BRANCHES, w=_floats(4, 2, 3, 3), w2=_floats(4, 4, 3, 3), zero=np.float32(0)),
    "loop": lambda: _model(LOOP, w=_floats(2, 2, 3, 3), count=np.int64(3), yes=np.bool_(True)),
    "functions": lambda: _model(FUNCTIONS, w=_floats(4, 3, 3, 3), w2=_floats(4, 4, 3, 3)),
    "several": lambda: _model(SEVERAL, w=_floats(4, 3, 3, 3), v=_floats(6, 3)),
    "ids": lambda: _model(IDS, table=_floats(9, 6), w=_floats(6, 6), axes=_whole(1), v=_floats(6, 3)),
    "bytes": lambda: _model(BYTES, most=np.float32(255), w=_floats(4, 3, 1, 1), slope=_floats(4, 1, 1)),
    "half": _half,
    "qdq": lambda: _model(
        QDQ, s=np.float32(0.05), z=np.uint8(128), wz=np.int8(0),
        wq=np.random.default_rng(0).integers(-99, 99, (4, 3, 3, 3)).astype(np.int8),
    ),
}  # fmt: skip
COUNT = 4


@cache
def seeds() -> tuple[Seed, ...]:
    """All models, built once."""
    found = [_seed(name, builder()) for name, builder in BUILDERS.items()]
    external, files = _external()
    return (*found, _seed("external", external, files), _seed("digits", onnx.load(DIGITS)))


def _seed(name: str, proto: onnx.ModelProto, files: dict[str, bytes] | None = None) -> Seed:
    random, feeds = np.random.default_rng(0), {}
    for value in proto.graph.input:
        dims: Sequence[int] = [dim.dim_value or COUNT for dim in value.type.tensor_type.shape.dim]
        dims = [COUNT, *dims[1:]] if dims else []
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        drawn = random.normal(size=dims) if np.issubdtype(dtype, np.floating) else random.integers(0, 9, dims)
        feeds[value.name] = np.asarray(drawn).astype(dtype)
    return Seed(
        name=name,
        data=proto.SerializeToString(),
        feeds=feeds,
        files=files or {},
        photographs="image" in feeds and "extra" not in feeds,
    )
