"""Graphs that many tests build: from text, node by node, and with BatchNormalizations that remember known images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.engine import TorchGraph
from passes.canonical.canonicalize import Canonicalize
from passes.graph.batch_norm import read_batch_norms

Shape = Sequence[int | str]


REPOSITORY = Path(__file__).resolve().parents[1]
DIGITS = REPOSITORY / "samples" / "digits"
TWO_LAYERS = """(float[N,2,4,4] x) => (float[N,3] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w, b)
    r = Relu (h)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB=1> (f, v)
}"""

VIT = """(float[{batch},3,16,16] image) => (float[{batch},5] logits) {{
    c = Conv <kernel_shape=[4,4], strides=[4,4]> (image, patch)
    f = Reshape (c, flat)
    t = Transpose <perm=[0,2,1]> (f)
    q = MatMul (t, wq)
    k = MatMul (t, wk)
    v = MatMul (t, wv)
    {attention}
    a = Add (t, of)
    m = ReduceMean <keepdims=0> (a, axis)
    logits = Gemm (m, head)
}}"""
ATTENTION = """
qh = Reshape (q, heads)  kh = Reshape (k, heads)  vh = Reshape (v, heads)
qt = Transpose <perm=[0,2,1,3]> (qh)
kt = Transpose <perm=[0,2,3,1]> (kh)
vt = Transpose <perm=[0,2,1,3]> (vh)
s = MatMul (qt, kt)
p = Softmax <axis=-1> (s)
o = MatMul (p, vt)
ot = Transpose <perm=[0,2,1,3]> (o)
of = Reshape (ot, tokens)
"""
ATTENTION_IN_ONE = "of = Attention <q_num_heads=2, kv_num_heads=2> (q, k, v)"


def build(text: str, *, opset: int = 21, named: bool = True, **weights: NDArray[Any]) -> ir.Model:
    """A graph in ONNX's own syntax; initializers by keyword; nodes are called `<operator>_<first output>`."""
    graph = onnx.parser.parse_graph("g " + text)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}" if named else ""
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def two_layers() -> ir.Model:
    """Conv (5 of 2 channels, 3×3, on 4×4), Relu, pooling, Gemm (3 of 5) without bias: Conv_h, Gemm_y."""
    random = np.random.default_rng(0)
    return build(
        TWO_LAYERS,
        w=random.normal(size=(5, 2, 3, 3)).astype("f4"),
        b=random.normal(size=5).astype("f4"),
        v=random.normal(size=(3, 5)).astype("f4"),
    )


def vit(batch: str | int = "N", *, attention: str = ATTENTION, opset: int = 21) -> ir.Model:
    """One attention of two heads over 16 patches of 8 channels; mean, and five classes. Canonical.

    attention: `ATTENTION_IN_ONE` for ONNX's own operator, which takes opset 23.
    """
    random = np.random.default_rng(0)
    weights: dict[str, NDArray[Any]] = {
        name: random.normal(0, 0.5, (8, 8)).astype("f4") for name in ("wq", "wk", "wv")
    } | {
        "patch": random.normal(0, 0.2, (8, 3, 4, 4)).astype("f4"),
        "head": random.normal(0, 1, (8, 5)).astype("f4"),
        "flat": np.array([0, 8, 16]),
        "heads": np.array([0, 16, 2, 4]),
        "tokens": np.array([0, 16, 8]),
        "axis": np.array([1]),
    }
    model = build(VIT.format(batch=batch, attention=attention), opset=opset, **weights)
    Canonicalize()(model)
    return model


def natural_images(count: int, channels: int, side: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Smooth random images of mean 0 and deviation 1: (count, channels, side, side)."""
    rng = np.random.default_rng(seed)
    place = np.arange(side)
    root = np.linalg.cholesky(0.95 ** np.abs(place[:, None] - place))
    own, common = rng.standard_normal((2, count, channels, side, side))
    return (root @ (0.9**0.5 * common[:, :1] + 0.1**0.5 * own) @ root.T).astype(np.float32)


def fit_batch_norms(model: ir.Model, feeds: Sequence[NDArray[np.generic]]) -> None:
    """Set every running mean and variance, in graph order, to what these inputs give."""
    for index in range(len(read_batch_norms(model))):
        stats = read_batch_norms(model)[index]
        graph = TorchGraph(model, outputs=[stats.value])
        names = [value.name for value in model.graph.inputs]
        tensors = [torch.from_numpy(np.asarray(feeds[names.index(name)])) for name in graph.input_names]
        with torch.no_grad():
            value = graph(*tensors)[0].double()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        node = next(node for node in model.graph if node.name == stats.node)
        var, mean = torch.var_mean(value, axes, correction=0)
        for slot, statistic in ((3, mean), (4, var)):
            old = node.inputs[slot]
            assert old is not None
            old.const_value = ir.tensor(statistic.float().numpy(), name=old.name)


class Network:
    """Builds an ONNX graph node by node; every method returns the name of what it adds."""

    def __init__(self, *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[object] = []
        self.initializers: list[object] = []

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def conv(self, x: str, inside: int, outside: int, **attributes: object) -> str:
        weight = self.rng.standard_normal((outside, inside, 3, 3)) / (3 * inside**0.5)
        return self.node("Conv", x, self.constant(weight.astype(np.float32)), pads=[1, 1, 1, 1], **attributes)

    def batch_norm(self, x: str, channels: int) -> str:
        scale = self.constant(self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
        bias = self.constant((0.3 * self.rng.standard_normal(channels)).astype(np.float32))
        mean, var = (self.constant(np.full(channels, value, np.float32)) for value in (0.0, 1.0))
        return self.node("BatchNormalization", x, scale, bias, mean, var)

    def gemm(self, x: str, inside: int, outside: int) -> str:
        weight = self.rng.standard_normal((inside, outside)) * 2 / inside**0.5
        return self.node("Gemm", x, self.constant(weight.astype(np.float32)))

    def model(self, inputs: dict[str, Shape], outputs: dict[str, Shape], *, integers: Sequence[str] = ()) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, shape)
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.initializers,
        )
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def plain_network(*, channels: int = 1, side: int = 8, batch: int | str = "batch", norm: bool = True) -> ir.Model:
    """conv-BN-relu-conv-BN-relu-flatten-gemm, 5 classes; statistics of `natural_images` with mean 0 and deviation 1."""
    net = Network()
    x = net.conv("image", channels, 8)
    x = net.node("Relu", net.batch_norm(x, 8) if norm else x)
    x = net.conv(x, 8, 12, strides=[2, 2])
    x = net.node("Relu", net.batch_norm(x, 12) if norm else x)
    x = net.gemm(net.node("Flatten", x), 12 * (side // 2) ** 2, 5)
    model = net.model({"image": [batch, channels, side, side]}, {x: [batch, 5]})
    count = batch if isinstance(batch, int) else 256
    fit_batch_norms(model, [natural_images(count, channels, side)])
    return model
