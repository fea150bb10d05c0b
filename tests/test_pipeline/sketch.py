"""Small QDQ graphs written by hand, each for one rule of a runtime."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES: dict[str, Any] = {
    name: getattr(ml_dtypes if name.lstrip("uint") in ("4", "2") else np, name)
    for name in ("uint8", "int8", "uint16", "int16", "int32", "uint4", "int4", "uint2", "int2")
}
# the oldest opset whose files have these element types; below it everything is of opset 21
OPSETS = {"uint2": 25, "int2": 25}
IR_VERSIONS = {10: 5, 11: 6, 12: 7, 13: 7, 17: 8, 19: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13, 27: 13}


class Sketch:
    """A graph in the making: the methods add nodes, and give the name of the value that they compute."""

    def __init__(self, opset: int = 21) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.random = np.random.default_rng(0)

    def input(self, *shape: int, name: str = "x", dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, array: Any) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def floats(self, *shape: int) -> str:
        return self.constant(0.1 * self.random.normal(size=shape).astype("f4"))

    def op(self, op_type: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def quantize(
        self, x: str, dtype: str = "uint8", zero: int = 0, scale: float = 2.0**-4, clip: Sequence[int] = ()
    ) -> tuple[str, str, str]:
        parameters = self.constant(np.float32(scale)), self.constant(np.asarray(zero).astype(TYPES[dtype]))
        y = self.op("QuantizeLinear", x, *parameters)
        if clip:
            y = self.op("Clip", y, *(self.constant(np.asarray(bound).astype(TYPES[dtype])) for bound in clip))
        return y, *parameters

    def qdq(self, x: str, dtype: str = "uint8", zero: int = 0, scale: float = 2.0**-4, clip: Sequence[int] = ()) -> str:
        return self.op("DequantizeLinear", *self.quantize(x, dtype, zero, scale, clip))

    def weight(self, *shape: int, dtype: str = "int8", axis: int | None = 0, zero: int = 0) -> str:
        """Scales per channel differ, so that a kernel that mixes them up computes something else."""
        info = ml_dtypes.iinfo(TYPES[dtype])
        integers = self.random.integers(max(int(info.min), -127), min(int(info.max), 127) + 1, shape)
        channels = () if axis is None else (shape[axis],)
        scale = np.full(channels, 2.0**-6, "f4") * 2.0 ** -(np.arange(channels[0]) % 3 if channels else np.float32(0))
        return self.op(
            "DequantizeLinear",
            self.constant(integers.astype(TYPES[dtype])),
            self.constant(scale.astype("f4")),
            self.constant(np.full(channels, zero).astype(TYPES[dtype])),
            **({} if axis is None else {"axis": axis}),
        )

    def bias(self, count: int, factor: float = 1.0, dtype: str = "int32", per_channel: bool = True) -> str:
        """With the scale of an input of 2**-4 and a weight of `weight`, times `factor`."""
        channels = (count,) if per_channel else ()
        steps = np.arange(count) % 3 if per_channel else np.float32(0)
        scale = np.full(channels, factor * 2.0**-10, "f4") * 2.0**-steps
        return self.op(
            "DequantizeLinear",
            self.constant(self.random.integers(-100, 100, count).astype(TYPES[dtype])),
            self.constant(scale.astype("f4")),
            self.constant(np.zeros(channels, TYPES[dtype])),
            **({"axis": 0} if per_channel else {}),
        )

    def model(self, *outputs: str) -> onnx.ModelProto:
        """Types and shapes of the outputs are left to inference."""
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "sketch", self.inputs, infos, self.initializers)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=IR_VERSIONS[self.opset]
        )
        inferred = onnx.shape_inference.infer_shapes(model).graph
        for info in inferred.output:
            info.type.tensor_type.ClearField("shape")
        model.graph.ClearField("output")
        model.graph.output.extend(inferred.output)
        return model


def opset_for(*dtypes: str, default: int = 21) -> int:
    return max([default, *(OPSETS.get(dtype, 0) for dtype in dtypes)])


def conv(
    *,
    act: str = "uint8",
    zero: int = 0,
    clip: Sequence[int] = (),
    out: str | None = None,
    out_zero: int | None = None,
    out_scale: float = 2.0**-2,
    out_clip: Sequence[int] = (),
    weight: str = "int8",
    weight_zero: int = 0,
    axis: int | None = 0,
    bias: str = "float",
    factor: float = 1.0,
    function: Sequence[float] | str = (),
    end: str = "quantized",
    group: int = 1,
    opset: int = 21,
    op: str = "Conv",
) -> onnx.ModelProto:
    """Quantized input, Conv "conv", one activation function, quantized output."""
    s = Sketch(opset_for(act, weight, default=opset))
    x = s.qdq(s.input(1, 8, 8, 8), act, zero, clip=clip)
    shape = (8, 8 // group, 3, 3)
    w = s.floats(*shape) if weight == "float" else s.weight(*shape, dtype=weight, axis=axis, zero=weight_zero)
    forms = {"none": [], "float": [s.floats(8)]}
    b = forms[bias] if bias in forms else [s.bias(8, factor, bias, axis is not None)]
    y = s.op(op, x, w, *b, name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=group)
    match function:
        case str():
            y = s.op(function, y, name="function")
        case [*bounds] if bounds:
            y = s.op("Clip", y, *(s.constant(np.float32(bound)) for bound in bounds), name="function")
    parameters = (out or act, zero if out_zero is None else out_zero, out_scale, out_clip)
    if end == "float":
        return s.model(y)
    z = s.qdq(y, *parameters)
    match end:
        case "read twice":
            return s.model(z, s.op("Tanh", y))
        case "quantized twice":
            return s.model(z, s.qdq(y, out or act, zero, 2 * out_scale))
        case "an output too":
            return s.model(z, y)
        case "integers":
            return s.model(s.nodes[-1].input[0])
    return s.model(z)


def residual(
    *, dtype: str = "uint8", zero: int = 0, branch: bool = True, function: bool = False, opset: int = 21
) -> onnx.ModelProto:
    """Two convolutions around which the input of the second is added to its output. branch: with QDQ on both."""
    s = Sketch(opset)
    weights = [s.weight(8, 8, 3, 3) for _ in range(2)]
    x = s.qdq(s.input(1, 8, 8, 8), dtype, zero)
    first = s.op("Conv", x, weights[0], name="first", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    first = s.qdq(first, dtype, zero)
    second = s.op("Conv", first, weights[1], name="second", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    y = s.op("Add", first, s.qdq(second, dtype, zero) if branch else second, name="add")
    if function:
        y = s.op("Relu", y, name="function")
    return s.model(s.qdq(y, dtype, zero, 2.0**-2))


def binary(
    op: str,
    *,
    first: str = "uint8",
    second: str = "uint8",
    out: str = "uint8",
    zeros: Sequence[int] = (0, 0, 0),
    scale: float = 2.0**-4,
    kind: str = "computed",
    function: bool = False,
    end: str = "quantized",
    **attributes: Any,
) -> onnx.ModelProto:
    """Add, Mul, Concat, ... of two inputs, as "node". kind: what the second is."""
    s = Sketch(opset_for(first, second, out))
    a = s.qdq(s.input(1, 8, 4, 4), first, zeros[0])
    match kind:
        case "computed":
            b = s.qdq(s.input(1, 8, 4, 4, name="y"), second, zeros[1], scale)
        case "float":
            b = s.input(1, 8, 4, 4, name="y")
        case "same":
            b = a
        case "constant":
            b = s.weight(1, 8, 4, 4, dtype=second, axis=None, zero=zeros[1])
        case _:
            b = s.floats(1, 8, 4, 4)
    y = s.op(op, a, b, name="node", **attributes)
    if function:
        y = s.op("Relu", y, name="function")
    return s.model(s.qdq(y, out, zeros[2], 2.0**-3) if end == "quantized" else y)


def unary(
    op: str,
    *,
    act: str = "uint8",
    out: str | None = None,
    zero: int = 0,
    out_zero: int | None = None,
    out_scale: float = 2.0**-4,
    clip: Sequence[int] = (),
    out_clip: Sequence[int] = (),
    function: bool = False,
    end: str = "quantized",
    more: Sequence[Any] = (),
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """An operator of one input, as "node". act: "float" leaves its input as it is."""
    s = Sketch(opset_for(act, default=opset))
    x = s.input(1, 8, 4, 4)
    x = x if act == "float" else s.qdq(x, act, zero, clip=clip)
    y = s.op(op, x, *map(s.constant, more), name="node", **attributes)
    if function:
        y = s.op("Relu", y, name="function")
    written = (out or (act if act != "float" else "uint8"), zero if out_zero is None else out_zero, out_scale, out_clip)
    return s.model(s.qdq(y, *written) if end == "quantized" else y)


def matmul(
    op: str = "MatMul",
    *,
    act: str = "uint8",
    weight: str = "int8",
    out: str | None = None,
    zero: int = 0,
    weight_zero: int = 0,
    out_zero: int | None = None,
    axis: int | None = 1,
    computed: bool = False,
    bias: str = "none",
    factor: float = 1.0,
    add: str = "",
    function: bool | str = False,
    end: str = "quantized",
    rows: Sequence[int] = (4,),
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """MatMul or Gemm "node", possibly an Add "add", an activation function, quantized output."""
    s = Sketch(opset_for(act, weight, default=opset))
    x = s.input(*rows, 32)
    x = x if act == "float" else s.qdq(x, act, zero)
    shape = (16, 32) if attributes.get("transB") else (32, 16)
    if computed:
        w = s.qdq(s.input(*shape, name="y"), weight, weight_zero)
    else:
        w = s.floats(*shape) if weight == "float" else s.weight(*shape, dtype=weight, axis=axis, zero=weight_zero)
    forms = {"none": [], "float": [s.floats(16)], "matrix": [s.floats(1, 16)]}
    b = forms[bias] if bias in forms else [s.bias(16, factor, bias, axis is not None)]
    y = s.op(op, x, w, *b, name="node", **attributes)
    if add:
        row = s.bias(16) if add == "quantized" else s.floats(*(() if add == "number" else (16,)))
        y = s.op("Add", *((row, y) if add == "first" else (y, row)), name="add")
    if function:
        y = s.op(function if isinstance(function, str) else "Relu", y, name="function")
    written = (out or (act if act != "float" else "uint8"), zero if out_zero is None else out_zero, 2.0**-1)
    return s.model(s.qdq(y, *written) if end == "quantized" else y)


def moved(
    op: str,
    *more: Any,
    dtype: str = "uint8",
    opset: int = 21,
    forward: bool = True,
    readers: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """Quantized data → "moves" → Sigmoid "node" → quantized (forward), or the Sigmoid before "moves"."""
    s = Sketch(opset)
    x = s.qdq(s.input(1, 8, 4, 4), dtype)
    if not forward:
        x = s.op("Sigmoid", x, name="node")
    y = s.op(
        op, x, *(entry if isinstance(entry, str) else s.constant(entry) for entry in more), name="moves", **attributes
    )
    if not forward:
        return s.model(s.qdq(y, dtype))
    functions = ("Sigmoid", "LeakyRelu")[:readers]  # two equal ones would be merged
    outputs = [s.qdq(s.op(function, y, name=f"node_{function}"), dtype) for function in functions]
    return s.model(*(outputs or [y]))


def qlinear(op: str, *, act: str = "uint8", per_channel: bool = False) -> onnx.ModelProto:
    """QLinearConv or QLinearMatMul "node" between Quantize and Dequantize."""
    s = Sketch(17)
    x, scale, zero = s.quantize(s.input(*((1, 8, 8, 8) if op == "QLinearConv" else (4, 8))), act)
    shape, channels = ((4, 8, 3, 3), 4) if op == "QLinearConv" else ((8, 16), 16)
    w = s.constant(s.random.integers(-127, 128, shape).astype("i1"))
    of_weight = (channels,) if per_channel else ()
    weight = w, s.constant(np.full(of_weight, 2.0**-6, "f4")), s.constant(np.zeros(of_weight, "i1"))
    y = s.op(op, x, scale, zero, *weight, scale, zero, name="node")
    return s.model(s.op("DequantizeLinear", y, scale, zero))


def of_channels(op: str, *, inward: bool, opset: int = 21, **attributes: Any) -> onnx.ModelProto:
    """An operator "node" whose input, or output, has a scale for every channel."""
    s = Sketch(opset)
    grid = s.constant(np.float32(2.0**-4) * 2.0 ** (np.arange(8, dtype="f4") % 3)), s.constant(np.zeros(8, "u1"))

    def channels(value: str) -> str:
        return s.op("DequantizeLinear", s.op("QuantizeLinear", value, *grid, axis=1), *grid, axis=1)

    x = s.input(1, 8, 8, 8)
    inputs = [channels(x) if inward else s.qdq(x)]
    if op in ("Add", "Mul", "Concat"):
        inputs.append(s.qdq(s.input(1, 8, 8, 8, name="y")))
    if op == "Conv":
        inputs.append(s.weight(8, 8, 3, 3))
    y = s.op(op, *inputs, name="node", **attributes)
    return s.model(s.qdq(y) if inward else channels(y))


def blocked(op: str, *, dtype: str = "int8", act: bool = True, end: str = "quantized") -> onnx.ModelProto:
    """MatMul or Gemm "node" with a weight that has a scale for every 16 rows."""
    s = Sketch()
    x = s.input(4, 32)
    x = s.qdq(x) if act else x
    integers = s.constant(s.random.integers(-7, 8, (32, 16)).astype(TYPES[dtype]))
    grid = s.constant(np.full((2, 16), 2.0**-6, "f4")), s.constant(np.zeros((2, 16), TYPES[dtype]))
    y = s.op(op, x, s.op("DequantizeLinear", integers, *grid, axis=0, block_size=16), name="node")
    return s.model(s.qdq(y, scale=2.0**-1) if end == "quantized" else y)
