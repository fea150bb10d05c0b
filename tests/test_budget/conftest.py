"""Small float networks for budgets."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

TWO_LAYERS = """(float[N,2,4,4] x) => (float[N,3] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w, b)
    r = Relu (h)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm <transB=1> (f, v)
}"""


def _build(text: str, **weights: NDArray[Any]) -> ir.Model:
    graph = onnx.parser.parse_graph("g " + text)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    """build(text of a graph, name=array, ...): nodes are called `<operator>_<first output>`."""
    return _build


@pytest.fixture
def two_layers() -> ir.Model:
    """Conv (5 of 2 channels, 3×3, on 4×4), Relu, pooling, Gemm (3 of 5) without bias: Conv_h, Gemm_y."""
    random = np.random.default_rng(0)
    return _build(
        TWO_LAYERS,
        w=random.normal(size=(5, 2, 3, 3)).astype("f4"),
        b=random.normal(size=5).astype("f4"),
        v=random.normal(size=(3, 5)).astype("f4"),
    )
