"""QuantizeLinear and DequantizeLinear: values of every type and granularity, and gradients."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxdfq.engine import TorchGraph
from onnxdfq.model_file.through_proto import infer_shapes

MakeModel = Callable[..., ir.Model]

RANGES = {
    "INT2": (-2, 1), "INT4": (-8, 7), "INT8": (-128, 127), "INT16": (-32768, 32767),
    "UINT2": (0, 3), "UINT4": (0, 15), "UINT8": (0, 255), "UINT16": (0, 65535),
}  # fmt: skip
CARRIED_BY = {"INT2": "int8", "INT4": "int8", "UINT2": "uint8", "UINT4": "uint8", "UINT16": "int32"}

GRANULARITIES = {  # shape of the scale of a (4, 6) tensor, attributes
    "per tensor": ((), ""),
    "per axis 0": ((4,), "<axis = 0>"),
    "per axis -1": ((6,), "<axis = -1>"),
    "blocked": ((4, 3), "<axis = 1, block_size = 2>"),
    "blocked, last block short": ((1, 6), "<axis = 0, block_size = 5>"),
}


def _by_hand(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int) -> np.ndarray:
    """The definition, in float32. np.rint rounds half to even."""
    return np.clip(np.rint((x / scale).astype(np.float32)) + zero, low, high)


def _spread(parameter: np.ndarray, granularity: str) -> np.ndarray:
    """A scale or zero point in the shape of the tensor (4, 6)."""
    match granularity:
        case "per axis 0":
            parameter = parameter[:, None]
        case "blocked":
            parameter = np.repeat(parameter, 2, axis=1)
        case "blocked, last block short":
            parameter = np.repeat(parameter, 5, axis=0)[:4]
    return np.broadcast_to(parameter, (4, 6))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("kind", RANGES)
def test_values(kind: str, granularity: str, make_model: MakeModel) -> None:
    low, high = RANGES[kind]
    shape, attributes = GRANULARITIES[granularity]
    generator = np.random.default_rng(0)
    scale = generator.uniform(0.5, 2.0, shape).astype(np.float32)
    zero = generator.integers(low, high, shape, endpoint=True)
    spread = _spread(scale, granularity), _spread(zero, granularity)
    x = (generator.uniform(low - 2, high + 2, (4, 6)) - spread[1]).astype(np.float32) * spread[0]
    x[0, :3] = (np.array([0.5, 1.5, -2.5]) * spread[0][0, :3]).astype(np.float32)  # ties
    expected = _by_hand(x, *spread, low, high)

    dims = ", ".join(map(str, shape))
    brackets = f"[{dims}]" if shape else ""
    text = f"""network (float[4, 6] x, float{brackets} s, {kind.lower()}{brackets} z) => (float y, {kind.lower()} kept)
    {{ q = QuantizeLinear {attributes} (x, s, z)
       y = DequantizeLinear {attributes} (q, s, z)
       kept = QuantizeLinear {attributes} (x, s, z) }}"""
    engine = TorchGraph(make_model(text, {"s": scale, "z": zero}, opset=25), outputs=["q", "y", "kept"])
    carried, restored, kept = engine(torch.from_numpy(x))
    assert carried.dtype is torch.float32
    assert kept.dtype is getattr(torch, CARRIED_BY.get(kind, kind.lower()))
    np.testing.assert_array_equal(carried, expected)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(restored, ((expected - spread[1]) * spread[0]).astype(np.float32))


def test_without_zero_point_the_type_is_output_dtype(make_model: MakeModel) -> None:
    text = "network (float[N] x, float s) => (int16 y) { y = QuantizeLinear <output_dtype = 5> (x, s) }"
    (y,) = TorchGraph(make_model(text, {"s": 0.5}))(torch.tensor([-1e9, 0.25, 0.75, 1e9]))
    assert y.dtype is torch.int16
    assert y.tolist() == [-32768, 0, 2, 32767]


def test_int32_bias_is_dequantized_exactly_enough(make_model: MakeModel) -> None:
    text = "network (int32[2] x, float s) => (float y) { y = DequantizeLinear (x, s) }"
    (y,) = TorchGraph(make_model(text, {"s": 2.0**-10}))(torch.tensor([2**24 + 2, -5], dtype=torch.int32))
    assert y.tolist() == [(2**24 + 2) * 2.0**-10, -5 * 2.0**-10]


def test_float8_is_computed_by_onnx_runtime(make_model: MakeModel) -> None:
    text = """network (float[N] x, float s) => (float[N] y)
        { q = QuantizeLinear <output_dtype = 17> (x, s)  y = DequantizeLinear (q, s) }"""
    model = make_model(text, {"s": 1.0})
    infer_shapes(model, strict=False)  # as on loading: the type of q tells that torch has none for it
    (y,) = TorchGraph(model)(torch.tensor([1.0, 1.06, 17.0]))
    assert y.tolist() == [1.0, 1.0, 16.0]


# --- gradients ----------------------------------------------------------------------------------

FAKE_QUANT = """network (float[N] x, float s, int8 z) => (float[N] y)
{ q = QuantizeLinear (x, s, z)
  y = DequantizeLinear (q, s, z) }"""


def test_gradients_by_hand(make_model: MakeModel) -> None:
    """s = 0.5, z = 3: x = 0.6 lies at 1.2 and rounds to 1; -70 and 70 lie outside [-131, 124] steps."""
    engine = TorchGraph(make_model(FAKE_QUANT, {"s": 0.5, "z": 3}), trainable=["s"])
    x = torch.tensor([0.6, -0.85, -70.0, 70.0, -65.5, 62.0], requires_grad=True)
    (y,) = engine(x)
    assert y.tolist() == [0.5, -1.0, -65.5, 62.0, -65.5, 62.0]
    per_element = [torch.autograd.grad(y[i], (x, engine.initializers["s"]), retain_graph=True) for i in range(6)]
    assert [gradient[i].item() for i, (gradient, _) in enumerate(per_element)] == [1, 1, 0, 0, 1, 1]
    # round(v) - v inside, the integer without its zero point outside (LSQ, Eq. 3).
    expected = [1 - 1.2, -2 + 1.7, -131.0, 124.0, 0.0, 0.0]
    np.testing.assert_allclose([step.item() for _, step in per_element], expected, atol=1e-5)


def test_scale_gradient_is_the_derivative_where_there_is_one(make_model: MakeModel) -> None:
    """Out of range y = integer * s is differentiable, so a finite difference must agree."""
    model = make_model(FAKE_QUANT, {"s": 0.5, "z": 3})
    engine = TorchGraph(model, trainable=["s"])
    x, scale = torch.tensor([-100.0, 90.0]), engine.initializers["s"]
    (gradient,) = torch.autograd.grad(engine(x)[0].sum(), scale)
    with torch.no_grad():
        scale.copy_(torch.tensor(0.5 + 2**-8))
        above = engine(x)[0].sum()
        scale.copy_(torch.tensor(0.5 - 2**-8))
        difference = (above - engine(x)[0].sum()) / 2**-7
    assert gradient.item() == pytest.approx(difference.item(), rel=1e-4)


def test_gradients_per_channel_and_to_weights(make_model: MakeModel) -> None:
    """A quantized weight that trains, as reconstruction and QAT do it: weight (2, 3), one scale per row."""
    text = """network (float[N, 3] x, float[2, 3] w, float[2] s, int8[2] z) => (float[N, 2] y)
    { q = QuantizeLinear <axis = 0> (w, s, z)
      d = DequantizeLinear <axis = 0> (q, s, z)
      y = Gemm <transB = 1> (x, d) }"""
    weight = np.array([[0.26, -0.6, 0.1], [500.0, 1.2, -0.3]], np.float32)
    engine = TorchGraph(make_model(text, {"w": weight, "s": [0.5, 1.0], "z": [0, 0]}), trainable=["w", "s"])
    (y,) = engine(torch.ones(1, 3))
    got = torch.autograd.grad(y.sum(), [engine.initializers["w"], engine.initializers["s"]])
    assert got[0].tolist() == [[1, 1, 1], [0, 1, 1]]
    rows = [(1 - 0.52) + (-1 + 1.2) + (0 - 0.2), 127 + (1 - 1.2) + (0 + 0.3)]
    np.testing.assert_allclose(got[1], rows, atol=1e-4)


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        ("c = Clip (q, low, high)\n r = Identity (c)", [0.0, 1.0, 1.0, 0.0]),
        ("c = Max (q, low)\n r = Min (c, high)", [0.0, 1.0, 1.0, 0.0]),
        ("r = Reshape (q, shape)", [1.0, 1.0, 1.0, 1.0]),
        ("r = MaxPool <kernel_shape = [2], strides = [2]> (q)", [0.0, 1.0, 0.0, 1.0]),
    ],
)
def test_gradient_passes_what_stands_between(between: str, expected: list[float], make_model: MakeModel) -> None:
    """The 4-bit activations of runtimes without an int4 kernel: int8, clipped to [-8, 7] before it is dequantized."""
    text = f"""network (float[1, 1, 4] x, float s, int8 z, int8 low, int8 high, int64[2] shape) => (float y)
    {{ q = QuantizeLinear (x, s, z)
       {between}
       y = DequantizeLinear (r, s, z) }}"""
    engine = TorchGraph(make_model(text, {"s": 1.0, "z": 0, "low": -8, "high": 7, "shape": [2, 2]}))
    x = torch.tensor([[[-20.0, -3.2, 5.4, 30.0]]], requires_grad=True)
    (y,) = engine(x)
    assert y.flatten().tolist() in ([-8.0, -3.0, 5.0, 7.0], [-20.0, -3.0, 5.0, 30.0], [-3.0, 30.0])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.flatten().tolist() == expected


def test_integers_that_something_else_reads_stay_integers(make_model: MakeModel) -> None:
    text = """network (float[N] x, float s, int8 z) => (float y, bool same)
    { q = QuantizeLinear (x, s, z)
      y = DequantizeLinear (q, s, z)
      same = Equal (q, z) }"""
    model = make_model(text, {"s": 1.0, "z": 0})
    q, same = TorchGraph(model, outputs=["q", "same"])(torch.tensor([0.4, 1.6]))
    assert q.dtype is torch.int8
    assert same.tolist() == [True, False]
    assert TorchGraph(model, outputs=["q", "y"])(torch.zeros(2))[0].dtype is torch.float32, "Equal is not needed here"


# --- a whole network ----------------------------------------------------------------------------


class _Noise(CalibrationDataReader):
    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.batches = iter([{"image": generator.standard_normal((4, 3, 32, 32)).astype(np.float32) * 64 + 128}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.mark.parametrize("activation", [QuantType.QUInt8, QuantType.QInt16])
def test_quantized_network_as_in_onnxruntime(shared_data: Path, tmp_path: Path, activation: QuantType) -> None:
    """A QDQ model that onnxruntime wrote: int8 weights per channel, int32 biases, zero points."""
    path = tmp_path / "quantized.onnx"
    quantize_static(
        shared_data / "models" / "resnet8_cifar10.onnx", path, _Noise(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=activation, weight_type=QuantType.QInt8,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = _Noise().get_next()
    assert feeds is not None
    (expected,) = session.run(None, feeds)
    model = ir.serde.deserialize_model(onnx.load(path))
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) > 30
    image = torch.from_numpy(feeds["image"]).requires_grad_()
    (got,) = TorchGraph(model)(image)
    # A sum in another order tips a value over a rounding edge here and there: two steps of the logits at most.
    scale = model.graph.outputs[0].producer().inputs[1].const_value.numpy().item()
    error = np.abs(got.detach().numpy() - expected) / scale
    assert error.max() <= (2.01 if activation is QuantType.QUInt8 else 100)
    assert np.abs(expected).max() / scale > (100 if activation is QuantType.QUInt8 else 10_000)
    got.square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
