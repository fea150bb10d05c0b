"""Files for ESP-DL, and what its compiler makes of them where it is installed (pip install esp-ppq)."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxdfq
from samples.espdl.run import unquantized

from ..graphs import REPOSITORY
from .conftest import Level, run
from .test_targets import write_network


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("espdl")
    source = write_network(folder / "m.onnx")
    result = onnxdfq.compress(source, target="espdl", method="noise", images=16, output=folder / "q.onnx")
    assert result.path is not None
    return result.path


def test_what_the_compiler_is_given_is_the_network_of_the_rounded_weights(written: Path, tmp_path: Path) -> None:
    model, scales = unquantized(onnx.load(written))
    onnx.save(model, tmp_path / "float.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} == {
        "Conv", "Relu", "Clip", "Add", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    assert set(scales) <= names and {"x", "ar", "s", "y"} <= set(scales)
    assert all(np.log2(scale).is_integer() for scale in scales.values())
    pixels = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    (expected,), (found,) = (
        run(path, {"x": pixels}, Level.ORT_DISABLE_ALL) for path in (written, tmp_path / "float.onnx")
    )
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.skipif(find_spec("esp_ppq") is None, reason="ESP-PPQ is not installed: it wants an older onnx")
def test_the_compiler_computes_what_the_file_says(written: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "samples.espdl.run", str(written), str(tmp_path / "m.espdl")],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert (tmp_path / "m.espdl").stat().st_size > 1000
    steps = float(done.stdout.rsplit("at most ", 1)[1].split()[0])
    assert steps <= 2 and "without a scale in the file: []" in done.stdout
