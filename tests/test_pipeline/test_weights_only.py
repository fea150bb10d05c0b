"""`--block`: weights alone, with a scale for every block, from the outside."""

from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import InputError


@pytest.fixture
def source(nets: ModuleType, tmp_path: Path) -> Path:
    ir.save(nets.vit(), tmp_path / "vit.onnx")
    return tmp_path / "vit.onnx"


@pytest.mark.parametrize("rounding", ["rtn", pytest.param("gptq", marks=pytest.mark.slow)])
def test_a_transformer_without_batch_normalization(rounding: str, source: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "noise", "images": 16} if rounding == "gptq" else {}
    result = onnxdfq.compress(source, output=tmp_path / "q.onnx", bits="w4a32", block=16, rounding=rounding, **settings)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert onnx.TensorProto.INT4 in kinds and result.metrics["layers_in_blocks"] == 4
    assert result.metrics["sqnr_db_held_back"] > 10  # type: ignore[operator]
    assert (result.images is None) == (rounding == "rtn")
    assert any("qdq_matmulnbits_accuracy_level" in note for note in result.notes)


def test_eight_bits_in_blocks(source: Path, tmp_path: Path) -> None:
    result = onnxdfq.compress(source, output=tmp_path / "q.onnx", bits="w8a32", block=16)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert result.metrics["sqnr_db_held_back"] > 30  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "w4a8", "block": 32}, "beside float activations, and --bits w4a8 asks for others"),
        ({"bits": "w4a32", "block": 8}, "block is 8; it must be at least 16"),
        ({"bits": "w4a32", "block": 32, "tuning": "brecq"}, "has no form for blocks"),
        ({"bits": "w4a32", "block": 32, "rounding": "gptqq"}, "Did you mean 'gptq'"),
        (
            {"bits": "w4a32", "block": 32, "target": "tensorrt"},
            "takes weights of 8|no weights with a scale for every block",
        ),
    ],
)
def test_refusals(settings: dict[str, Any], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        onnxdfq.compress(source, output=tmp_path / "q.onnx", **settings)


def test_a_network_of_convolutions_has_nothing_for_blocks(tmp_path: Path, nets: ModuleType) -> None:
    model = nets.build(
        "(float[N,2,4,4] x) => (float[N,3,4,4] y) { y = Conv <kernel_shape=[1,1]> (x, w) }",
        w=nets.np.ones((3, 2, 1, 1), "f4"),
    )
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="has no MatMul or Gemm with a constant matrix"):
        onnxdfq.compress(tmp_path / "m.onnx", output=tmp_path / "q.onnx", bits="w4a32", block=16)
