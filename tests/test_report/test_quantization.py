"""What `inspect` tells of models that other tools quantized, and of nodes without a name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxdfq.report.inspection import inspect
from onnxdfq.report.linting import lint
from onnxdfq.report.quantization import quantization

Build = Callable[..., ir.Model]

HEAD = "(float[N,4] x) => (float[N,M] y) { "


class Noise(CalibrationDataReader):
    """Two batches for (N, 3, 5, 5)."""

    def __init__(self) -> None:
        self._left = 2

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        self._left -= 1
        return None if self._left < 0 else {"x": np.random.default_rng(0).normal(size=(1, 3, 5, 5)).astype("f4")}


@pytest.fixture
def convolution(build: Build, tmp_path: Path) -> Path:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype("f4")
    text = "(float[N,3,5,5] x) => (float[N,4,3,3] y) { a = Conv(x, w) y = Relu(a) }"
    ir.save(build(text, w=weight), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "operators on integers", "dynamic"])
def test_files_of_onnx_runtimes_own_quantizer(convolution: Path, form: str, per_channel: bool) -> None:
    path = convolution.with_name("q.onnx")
    if form == "dynamic":
        quantize_dynamic(convolution, path, per_channel=per_channel, weight_type=QuantType.QInt8)
    else:
        written = QuantFormat.QDQ if form == "QDQ" else QuantFormat.QOperator
        quantize_static(convolution, path, Noise(), written, per_channel=per_channel)
    found = inspect(path).quantized
    assert found == {
        "form": form,
        "by": "onnx.quantize",
        # that of the input, and those behind Conv and Relu; dynamically only what the layer reads
        "activations": {"QDQ": 2, "operators on integers": 2, "dynamic": 1}[form],
        "activation_bits": [8],
        "weights": 1,
        "weight_bits": [8],
        # that quantizer gives a ConvInteger one scale, asked or not
        "weights_per": ["channel" if per_channel and form != "dynamic" else "tensor"],
        "zero_points": True,
        "power_of_two": False,
    }


@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_dynamic_matmul_has_the_scale_of_the_mul_behind_it(build: Build, tmp_path: Path, per: str) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 2)).astype("f4")
    ir.save(build(HEAD + "y = MatMul(x, w) }", w=weight), tmp_path / "float.onnx")
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "q.onnx", per_channel=per == "channel")
    found = inspect(tmp_path / "q.onnx").quantized
    assert (found["form"], found["weights"], found["weights_per"]) == ("dynamic", 1, [per])


@pytest.mark.parametrize(
    ("blocks", "zero", "zero_points"),
    [(2, None, False), (2, 0x88, False), (2, 0x87, True), (2, 0x78, True), (1, 0x08, False), (1, 0x07, True)],
)
def test_four_bits_of_matmulnbits(tmp_path: Path, blocks: int, zero: int | None, zero_points: bool) -> None:
    arrays = {"b": np.zeros((8, blocks, 16), "u1"), "s": np.full((8 * blocks,), 0.25, "f4")}
    if zero is not None:
        arrays["z"] = np.full((8,), zero, "u1")
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", K=32 * blocks, N=8, bits=4, block_size=32
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32 * blocks])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    assert lint(tmp_path / "m.onnx").quantized
    found = inspect(tmp_path / "m.onnx")
    assert found.without_gradient == ["com.microsoft.MatMulNBits"]
    assert found.quantized == {
        "form": "weight-only",
        "by": "a tool that gives no name",
        "activations": 0,
        "activation_bits": [],
        "weights": 1,
        "weight_bits": [4],
        "weights_per": ["block of 32"],
        "zero_points": zero_points,
        "power_of_two": True,
    }


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"w": np.zeros((4, 2), "i1"), "s": np.float32(0.5)}, {"weights_per": ["tensor"], "power_of_two": True}),
        ({"w": np.zeros((4, 2), "i1"), "s": np.float32(0.3)}, {"power_of_two": False, "zero_points": False}),
        (
            {"w": np.zeros((4, 2), "u1"), "s": np.float32([0.5, 1]), "z": np.uint8([128, 128])},
            {"weights_per": ["channel"], "zero_points": True, "weight_bits": [8]},
        ),
        ({"w": np.zeros((4, 2), "i2"), "s": np.float32(0.5), "z": np.int16(0)}, {"weight_bits": [16]}),
    ],
    ids=["power of two", "free", "per channel with zero points", "16 bits"],
)
def test_weights_of_a_qdq_file(build: Build, arrays: dict[str, Any], expected: dict[str, object]) -> None:
    read = ", ".join(arrays)
    found = quantization(build(f"{HEAD} f = DequantizeLinear({read}) y = MatMul(x, f) }}", **arrays))
    assert found["form"] == "QDQ" and found["activations"] == 0 and found["weights"] == 1
    assert {key: found[key] for key in expected} == expected


def test_a_bias_is_no_weight_and_a_float_weight_behind_a_quantizer_is_one(build: Build) -> None:
    arrays = {"w": np.ones((4, 2), "f4"), "b": np.ones(2, "i4"), "s": np.float32(0.5), "z": np.int8(0)}
    text = "q = QuantizeLinear(w, s, z) f = DequantizeLinear(q, s, z) c = DequantizeLinear(b, s) y = Gemm(x, f, c) }"
    found = quantization(build(HEAD + text, **arrays))
    assert (found["weights"], found["weight_bits"], found["activations"]) == (1, [8], 0)


def test_a_float_model_is_not_quantized(build: Build) -> None:
    assert quantization(build(HEAD + "y = MatMul(x, w) }", w=np.ones((4, 2), "f4"))) == {}


def test_a_size_of_minus_one_is_a_free_one(shared_data: Path) -> None:
    assert inspect(shared_data / "models" / "ppocr_cls.onnx").inputs == {"x": "float N×3×N×N"}


def test_nodes_without_a_name_are_told_by_operator_and_place(shared_cases: Path) -> None:
    assert inspect(shared_cases / "bn4_folded_to_mul_add.onnx").folded_batch_norms == ["Mul #1"]
