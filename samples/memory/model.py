"""A network of any size with its weights beside it: convolutions with BatchNormalization, then Gemm, then MatMul."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIDE = 32
SHARE = {"Conv": 0.4, "Gemm": 0.3, "MatMul": 0.3}
WIDEST = {"Conv": 1024, "Gemm": 4096}
CLASSES = 10
_INLINE = 4096  # bytes; statistics and biases stay in the file


@dataclass(kw_only=True)
class _Network:
    """Nodes and tensors; large weights are written to `data` as they are drawn, and never held together."""

    data: BinaryIO
    random: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    value: str = "x"

    def weight(self, *shape: int, fan_in: int) -> str:
        name = f"w{len(self.tensors)}"
        array = self.random.standard_normal(shape, np.float32)
        array *= np.float32(np.sqrt(2 / fan_in))
        if array.nbytes <= _INLINE:
            self.tensors.append(numpy_helper.from_array(array, name))
            return name
        tensor = onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        where = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": array.nbytes}
        tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=str(at)) for key, at in where.items())
        self.data.write(array.data)
        self.tensors.append(tensor)
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: int | list[int]) -> None:
        output = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, [self.value, *inputs], [output], name=f"node_{output}", **attributes)
        )
        self.value = output

    def conv(self, inside: int, out: int, stride: int) -> None:
        weight = self.weight(out, inside, 3, 3, fan_in=9 * inside)
        self.add("Conv", weight, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[stride, stride])
        spread = 1 + 0.1 * self.random.random((4, out))
        self.add("BatchNormalization", *(self.constant(row - (place in (1, 2))) for place, row in enumerate(spread)))
        self.add("Relu")


def widths(size: int) -> dict[str, int]:
    """Channels of the wide convolutions and features of the Gemm, a power of two each: eight layers or more of each."""
    found = {}
    for operator, share in SHARE.items():
        if operator in WIDEST:
            taps = 9 if operator == "Conv" else 1
            fits = int(np.sqrt(share * size / (8 * 4 * taps)))
            found[operator] = min(WIDEST[operator], 1 << (fits.bit_length() - 1))
    return found


def write_model(path: Path, size: int, *, seed: int = 0) -> int:
    """Writes a network whose weights have `size` bytes or more. Bytes of the file and of its data.

    Args:
        path: Of the file; the weights lie in `<name>.data` beside it.
        size: Bytes, 20 million or more.
        seed: Of the weights.
    """
    wide, features = widths(size)["Conv"], widths(size)["Gemm"]
    data = path.with_name(path.name + ".data")
    with data.open("wb") as stream:
        net = _Network(data=stream, random=np.random.default_rng(seed))
        for inside, out in _stem(wide):
            net.conv(inside, out, stride=2)
        for _ in range(_count(SHARE["Conv"] * size, 36 * wide * wide)):
            net.conv(wide, wide, stride=1)
        net.add("GlobalAveragePool")
        net.add("Flatten", axis=1)
        last = wide
        for _ in range(_count(SHARE["Gemm"] * size, 4 * features * features)):
            net.add("Gemm", net.weight(features, last, fan_in=last), net.constant(np.zeros(features)), transB=1)
            net.add("Relu")
            last = features
        for _ in range(_count(SHARE["MatMul"] * size, 32 * features * features)):
            net.add("MatMul", net.weight(features, 4 * features, fan_in=features))
            net.add("Relu")
            net.add("MatMul", net.weight(4 * features, features, fan_in=4 * features))
            net.add("Relu")
        net.add("Gemm", net.weight(CLASSES, features, fan_in=features), net.constant(np.zeros(CLASSES)), transB=1)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    y = helper.make_tensor_value_info(net.value, onnx.TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(net.nodes, "large", [x], [y], net.tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path.stat().st_size + data.stat().st_size


def _stem(wide: int) -> Iterator[tuple[int, int]]:
    yield from pairwise([3, wide // 4, wide // 2, wide])


def _count(wanted: float, each: int) -> int:
    return math.ceil(wanted / each)
