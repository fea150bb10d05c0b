"""Each rule beside the engine's own gradient."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from passes.training.backward import RULES, differentiate
from passes.training.tape import Tape

Arrays = dict[str, NDArray[np.generic]]

IMAGE, VECTOR, TOKENS = (2, 4, 6, 6), (3, 4), (2, 3, 8)

# What each is: inputs beside x (shapes of floats, or arrays), output shape, nodes; x is of the first shape.
CASES: dict[str, tuple[tuple[int, ...], dict[str, object], str]] = {
    "Abs": (VECTOR, {}, "y = Abs (x)"),
    "Add": (IMAGE, {"w": (4, 1, 1)}, "y = Add (x, w)"),
    "Add twice": (VECTOR, {"w": (1, 4)}, "h = Add (x, w) y = Add (h, x)"),
    "AveragePool": (IMAGE, {}, "y = AveragePool <kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]> (x)"),
    "AveragePool counting": (
        IMAGE, {},
        "y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (x)",
    ),
    "AveragePool rest": (IMAGE, {}, "y = AveragePool <kernel_shape=[3,3], strides=[2,2]> (x)"),
    "BatchNormalization": (
        IMAGE, {"w": (4,), "b": (4,), "mean": np.ones(4, "f4"), "var": np.full(4, 2, "f4")},
        "y = BatchNormalization (x, w, b, mean, var)",
    ),
    "Cast": (VECTOR, {}, "y = Cast <to=1> (x)"),
    "Clip": (VECTOR, {"low": np.float32(-0.5), "high": np.float32(0.7)}, "y = Clip (x, low, high)"),
    "Concat": (VECTOR, {"w": (3, 2)}, "y = Concat <axis=-1> (w, x, w)"),
    "Conv": (IMAGE, {"w": (5, 4, 3, 3), "b": (5,)}, "y = Conv <pads=[1,1,1,1]> (x, w, b)"),
    "Conv strided": (IMAGE, {"w": (5, 4, 3, 3)}, "y = Conv <pads=[0,1,1,0], strides=[2,2]> (x, w)"),
    "Conv with a rest": (IMAGE, {"w": (2, 4, 2, 3)}, "y = Conv <strides=[3,4]> (x, w)"),
    "Conv dilated": (
        IMAGE, {"w": (4, 2, 2, 2)},
        "y = Conv <dilations=[2,3], strides=[2,1], group=2, pads=[1,1,0,0]> (x, w)",
    ),
    "Conv depthwise": (
        IMAGE, {"w": (8, 1, 3, 3), "b": (8,)},
        'y = Conv <group=4, auto_pad="SAME_UPPER", strides=[2,2]> (x, w, b)',
    ),
    "Conv same lower": (IMAGE, {"w": (3, 4, 4, 2)}, 'y = Conv <auto_pad="SAME_LOWER"> (x, w)'),
    "Conv of a line": ((2, 4, 9), {"w": (3, 4, 3)}, "y = Conv <strides=[2]> (x, w)"),
    "ConvTranspose": (
        IMAGE, {"w": (4, 3, 3, 3), "b": (3,)},
        "y = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (x, w, b)",
    ),
    "ConvTranspose grouped": (
        IMAGE, {"w": (4, 3, 2, 2)},
        "y = ConvTranspose <group=2, strides=[2,1], dilations=[1,2]> (x, w)",
    ),
    "DepthToSpace": (IMAGE, {}, "y = DepthToSpace <blocksize=2> (x)"),
    "SpaceToDepth": (IMAGE, {}, "y = SpaceToDepth <blocksize=2> (x)"),
    "DequantizeLinear": (
        VECTOR, {"s": np.float32(0.1), "z": np.int8(3)},
        "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)",
    ),
    "Div": (IMAGE, {"w": (4, 1, 1)}, "y = Div (x, w)"),
    "Dropout": (VECTOR, {}, "y = Dropout (x)"),
    "Elu": (VECTOR, {}, "y = Elu <alpha=0.7> (x)"),
    "Erf": (VECTOR, {}, "y = Erf (x)"),
    "Exp": (VECTOR, {}, "y = Exp (x)"),
    "Expand": ((1, 4), {"shape": np.array([3, 1])}, "y = Expand (x, shape)"),
    "Flatten": (IMAGE, {}, "y = Flatten (x)"),
    "Gather": (VECTOR, {"i": np.array([2, 0, 2])}, "y = Gather <axis=1> (x, i)"),
    "Gather more": (VECTOR, {"i": np.array([2, 0, 2, 1, -1, 0])}, "y = Gather <axis=1> (x, i)"),
    "Gather one": (VECTOR, {"i": np.array(1)}, "y = Gather <axis=0> (x, i)"),
    "Gelu": (VECTOR, {}, "y = Gelu (x)"),
    "Gelu by tanh": (VECTOR, {}, 'y = Gelu <approximate="tanh"> (x)'),
    "Gemm": (VECTOR, {"w": (4, 5), "b": (5,)}, "y = Gemm <alpha=0.5, beta=2.0> (x, w, b)"),
    "Gemm transB": (VECTOR, {"w": (5, 4)}, "y = Gemm <transB=1> (x, w)"),
    "Gemm transA": (VECTOR, {"w": (3, 5)}, "y = Gemm <transA=1> (x, w)"),
    "Gemm both": (VECTOR, {"w": (5, 3), "b": (4, 1)}, "y = Gemm <transA=1, transB=1> (x, w, b)"),
    "GlobalAveragePool": (IMAGE, {}, "y = GlobalAveragePool (x)"),
    "GlobalMaxPool": (IMAGE, {}, "y = GlobalMaxPool (x)"),
    "HardSigmoid": (VECTOR, {}, "y = HardSigmoid <alpha=0.5> (x)"),
    "HardSwish": ((3, 30), {"c": np.float32(3)}, "h = Mul (x, c) y = HardSwish (h)"),
    "Identity": (VECTOR, {}, "y = Identity (x)"),
    "LayerNormalization": (TOKENS, {"w": (8,), "b": (8,)}, "y = LayerNormalization (x, w, b)"),
    "LayerNormalization of two axes": (TOKENS, {"w": (3, 8)}, "y = LayerNormalization <axis=1> (x, w)"),
    "LeakyRelu": (VECTOR, {}, "y = LeakyRelu <alpha=0.2> (x)"),
    "Log": (VECTOR, {}, "h = Exp (x) y = Log (h)"),
    "LogSoftmax": (TOKENS, {}, "y = LogSoftmax <axis=1> (x)"),
    "MatMul": (TOKENS, {"w": (8, 5)}, "y = MatMul (x, w)"),
    "MatMul of a batch": (TOKENS, {"w": (4, 1, 8, 5)}, "y = MatMul (x, w)"),
    "MatMul the other way": (TOKENS, {"w": (5, 3)}, "y = MatMul (w, x)"),
    "MaxPool": (IMAGE, {}, "y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)"),
    "Mul": (IMAGE, {"w": (2, 4, 1, 1)}, "y = Mul (x, w)"),
    "Mul by itself": (VECTOR, {}, "y = Mul (x, x)"),
    "Neg": (VECTOR, {}, "y = Neg (x)"),
    "PRelu": (IMAGE, {"w": (4, 1, 1)}, "y = PRelu (x, w)"),
    "Pad": (IMAGE, {"p": np.array([0, 0, 1, 0, 0, 0, 2, 1])}, "y = Pad (x, p)"),
    "Pad axes": (IMAGE, {"p": np.array([1, 2]), "v": np.float32(0), "a": np.array([-1])}, "y = Pad (x, p, v, a)"),
    "Pow": (VECTOR, {"c": np.float32(3)}, "y = Pow (x, c)"),
    "Pow of two": (VECTOR, {"c": np.float32(2)}, "y = Pow (c, x)"),
    "QuantizeLinear": (
        VECTOR, {"s": np.full(4, 0.01, "f4"), "z": np.zeros(4, np.int8)},
        "q = QuantizeLinear <axis=1> (x, s, z) y = DequantizeLinear <axis=1> (q, s, z)",
    ),
    "QuantizeLinear narrow": (
        VECTOR, {"s": np.float32(0.2), "z": np.uint8(5), "low": np.uint8(2), "high": np.uint8(9)},
        "q = QuantizeLinear (x, s, z) c = Clip (q, low, high) y = DequantizeLinear (c, s, z)",
    ),
    "QuantizeLinear of a pool": (
        IMAGE, {"s": np.float32(0.5), "z": np.uint8(3)},
        "q = QuantizeLinear (x, s, z) m = MaxPool <kernel_shape=[2,2]> (q) y = DequantizeLinear (m, s, z)",
    ),
    "Reciprocal": (VECTOR, {}, "y = Reciprocal (x)"),
    "ReduceMax": (TOKENS, {"a": np.array([1])}, "y = ReduceMax <keepdims=0> (x, a)"),
    "ReduceMin": (TOKENS, {"a": np.array([-1])}, "y = ReduceMin (x, a)"),
    "ReduceMean": (IMAGE, {"a": np.array([-1, 2])}, "y = ReduceMean <keepdims=0> (x, a)"),
    "ReduceSum": (IMAGE, {}, "y = ReduceSum (x)"),
    "Relu": (VECTOR, {}, "y = Relu (x)"),
    "Reshape": (TOKENS, {"s": np.array([0, 2, -1])}, "y = Reshape (x, s)"),
    "Resize": (IMAGE, {"s": np.array([1, 1, 2, 3], "f4")}, 'y = Resize <mode="nearest"> (x, , s)'),
    "Sigmoid": (VECTOR, {}, "y = Sigmoid (x)"),
    "Slice": (IMAGE, {"b": np.array([1, 1]), "e": np.array([5, 99]), "a": np.array([2, -1])}, "y = Slice (x, b, e, a)"),
    "Slice with steps": (
        IMAGE, {"b": np.array([1, -1]), "e": np.array([99, -99]), "a": np.array([2, 3]), "st": np.array([2, -2])},
        "y = Slice (x, b, e, a, st)",
    ),
    "Softmax": (TOKENS, {}, "y = Softmax <axis=-1> (x)"),
    "Softplus": (VECTOR, {}, "y = Softplus (x)"),
    "Split": (VECTOR, {"s": np.array([1, 3])}, "a, b = Split <axis=1> (x, s) c = Exp (b) y = Concat <axis=1> (a, c)"),
    "Split half used": (VECTOR, {"s": np.array([1, 3])}, "a, y = Split <axis=1> (x, s)"),
    "Sqrt": (VECTOR, {}, "h = Exp (x) y = Sqrt (h)"),
    "Squeeze": ((3, 1, 4), {"a": np.array([1])}, "y = Squeeze (x, a)"),
    "Sub": (IMAGE, {"w": (4, 1, 1)}, "y = Sub (w, x)"),
    "Tanh": (VECTOR, {}, "y = Tanh (x)"),
    "Transpose": (IMAGE, {}, "y = Transpose <perm=[1,3,0,2]> (x)"),
    "Unsqueeze": (VECTOR, {"a": np.array([1, -1])}, "y = Unsqueeze (x, a)"),
    "Where": (VECTOR, {"c": np.array([[True], [False], [True]]), "w": (4,)}, "y = Where (c, x, w)"),
}  # fmt: skip


def case(name: str) -> tuple[ir.Model, Arrays]:
    """The graph of a case, with what trains as its inputs, and numbers for these."""
    random = np.random.default_rng(0)
    shape, others, text = CASES[name]
    feeds: Arrays = {"x": random.normal(size=shape).astype("f4")}
    constants: Arrays = {}
    for key, given in others.items():
        trains = isinstance(given, tuple) or (key == "s" and "quant" in name.lower())
        array = random.normal(size=given).astype("f4") if isinstance(given, tuple) else np.asarray(given)
        (feeds if trains else constants)[key] = array
    inputs = ", ".join(f"float{list(array.shape)} {key}" for key, array in feeds.items()).replace("float[]", "float")
    graph = onnx.parser.parse_graph(f"g ({inputs}) => (float[] y) {{ {text} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), key) for key, array in constants.items())
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)), feeds


def by_rules(model: ir.Model, feeds: Arrays) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Gradients of Σ y² by input, and that sum: y itself weighs each of its numbers differently."""
    copy = model.clone()
    tape = Tape(copy.graph)
    y = copy.graph.outputs[0]
    square = tape.op("Mul", y, y)
    loss = tape.op("ReduceSum", square, keepdims=0)
    found = differentiate(tape, {y: tape.op("Add", y, y)}, list(copy.graph.inputs))
    copy.graph.outputs.clear()
    copy.graph.outputs.extend([loss, *found.values()])
    for value in copy.graph.outputs:
        value.dtype = ir.DataType.FLOAT
    run = onnxruntime.InferenceSession(ir.to_proto(copy).SerializeToString(), providers=["CPUExecutionProvider"])
    loss_found, *arrays = run.run(None, feeds)
    return {value.name or "": array for value, array in zip(found, arrays, strict=True)}, loss_found


def by_engine(model: ir.Model, feeds: Arrays) -> tuple[dict[str, NDArray[np.float32]], float]:
    graph = TorchGraph(model)
    tensors = {name: torch.from_numpy(np.array(feeds[name])).requires_grad_() for name in graph.input_names}
    loss = graph(*tensors.values())[0].square().sum()
    loss.backward()
    return {name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None}, loss.item()


@pytest.mark.parametrize("name", CASES)
def test_a_rule_agrees_with_the_engine(name: str) -> None:
    model, feeds = case(name)
    (found, loss), (expected, own) = by_rules(model, feeds), by_engine(model, feeds)
    assert loss == pytest.approx(own, rel=1e-5)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert found[key].shape == feeds[key].shape
        np.testing.assert_allclose(found[key], gradient, rtol=2e-5, atol=2e-5 * max(1, np.abs(gradient).max()))


def test_every_rule_is_tried() -> None:
    assert set(RULES) - {name.split()[0] for name in CASES} == {"Round", "Swish"}
