"""Operators of a library that the user names; none is loaded otherwise."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxdfq
from onnxdfq.errors import InputError

extensions = pytest.importorskip("onnxruntime_extensions", reason="a library of custom operators to try is not here")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A layer, an operator of another domain, and a layer."""
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(random.normal(size=(8, 8)).astype("f4") / 2, name) for name in ("w", "v")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("NegPos", ["a"], ["negative", "positive"], domain="ai.onnx.contrib"),
        helper.make_node("MatMul", ["positive", "v"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.contrib", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=opsets, ir_version=8),
        tmp_path / "m.onnx",
    )
    return tmp_path / "m.onnx"


def test_custom_operators_stay_float_and_run(model: Path, tmp_path: Path) -> None:
    library = extensions.get_library_path()
    x = np.random.default_rng(1).normal(size=(64, 8)).astype("f4")
    result = onnxdfq.compress(model, output=tmp_path / "q.onnx", calibration=x, op_library=[library])
    assert result.metrics["sqnr_db_images"] is not None and result.metrics["sqnr_db_images"] > 28
    assert any("NegPos" in note and "stay float" in note for note in result.notes)
    found = onnxdfq.evaluate(tmp_path / "q.onnx", x[:16], against=model, op_library=[library])
    assert found.sqnr_db is not None and found.sqnr_db > 28


def test_without_the_library_the_operator_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NegPos"):
        onnxdfq.compress(model, output=tmp_path / "q.onnx", method="noise")


@pytest.mark.parametrize("content", [None, b"no library"])
def test_what_is_no_library(model: Path, tmp_path: Path, content: bytes | None) -> None:
    library = tmp_path / "ops.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(InputError, match="no such file" if content is None else "no library of ONNX Runtime"):
        onnxdfq.compress(model, output=tmp_path / "q.onnx", op_library=[library])
