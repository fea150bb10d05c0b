"""A student that nobody trained: ResNet-20 of any width as ONNX, its weights drawn from a seed."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class _Graph:
    """Nodes and initializers, one layer behind the other."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_y"], name=name, **attributes))
        return f"{name}_y"

    def array(self, array: np.ndarray) -> str:
        name = f"array{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, inside: int, outside: int, *, side: int = 3, stride: int = 1) -> str:
        """A convolution and its BatchNormalization; weights as He et al., arXiv 1502.01852."""
        deviation = (2 / (inside * side * side)) ** 0.5
        weight = self.array(deviation * self.random.standard_normal((outside, inside, side, side)))
        y = self.node("Conv", x, weight, pads=[side // 2] * 4, strides=[stride] * 2, kernel_shape=[side] * 2)
        ones, zeros = np.ones(outside), np.zeros(outside)
        return self.node("BatchNormalization", y, *map(self.array, (ones, zeros, zeros, ones)))

    def block(self, x: str, inside: int, outside: int, stride: int) -> str:
        y = self.node("Relu", self.conv(x, inside, outside, stride=stride))
        y = self.conv(y, outside, outside)
        way = x if inside == outside else self.conv(x, inside, outside, side=1, stride=stride)
        return self.node("Relu", self.node("Add", y, way))


def write_student(path: Path, *, width: int, seed: int, classes: int = 10, blocks: int = 3) -> None:
    """A ResNet of three stages for (N, 3, 32, 32).

    Args:
        path: Where to write.
        width: Channels of the first stage; 16 is ResNet-20's own.
        seed: Of the weights.
        classes: How many it scores.
        blocks: Of each stage.
    """
    graph, channels = _Graph(seed), width
    x = graph.node("Relu", graph.conv("image", 3, width))
    for stage in range(3):
        for block in range(blocks):
            outside, stride = width * 2**stage, 2 if stage and not block else 1
            x, channels = graph.block(x, channels, outside, stride), outside
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    head = graph.random.standard_normal((channels, classes)) / channels**0.5
    graph.nodes.append(
        helper.make_node("Gemm", [x, graph.array(head), graph.array(np.zeros(classes))], ["scores"], name="head")
    )
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])]
        for name, shape in (("image", [3, 32, 32]), ("scores", [classes]))
    )
    made = helper.make_graph(graph.nodes, "student", inputs, outputs, graph.initializers)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
