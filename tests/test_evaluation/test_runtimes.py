"""One file in several runtimes."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.evaluation.runtimes import RUNTIMES

from ..graphs import DIGITS

DATA = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runtimes") / "q.onnx"
    onnxdfq.compress(DIGITS / "digits.onnx", output=output, method="noise", images=8)
    return output


def test_the_plain_reading_differs_from_itself_in_nothing(quantized: Path) -> None:
    (row,) = onnxdfq.compare_runtimes(quantized, DATA, runtime="ort-unoptimised")
    assert (row.steps, row.share, row.answers) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if name != "openvino" or find_spec("openvino")])
def test_every_runtime_is_within_a_step(name: str, quantized: Path) -> None:
    (row,) = onnxdfq.compare_runtimes(quantized, DATA, runtime=name)
    assert row.runtime == name and row.steps <= 1.01 and row.answers is not None and row.answers >= 0.9


def test_a_runtime_that_computes_something_else_is_seen(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = RUNTIMES["engine"]

    def off(path: Path, model: object) -> object:
        run, step = opened(path, model), step_of(path)  # type: ignore[arg-type]

        def shifted(arrays: object) -> object:
            found = dict(run(arrays))  # type: ignore[arg-type]
            name = next(iter(found))
            found[name] = found[name].copy()
            found[name][0, 0] += 3 * step
            return found

        return shifted

    monkeypatch.setitem(RUNTIMES, "engine", off)  # type: ignore[arg-type]
    (row,) = onnxdfq.compare_runtimes(quantized, DATA, runtime="engine")
    assert 2 <= row.steps <= 4.01 and row.share > 0


def step_of(path: Path) -> float:
    graph = onnx.load(path).graph
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return float(found[last.input[1]])


def test_what_is_no_runtime(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown runtime: 'tvm'\. .*Allowed: ort, ort-unoptimised, openvino, engine"):
        onnxdfq.compare_runtimes(quantized, DATA, runtime="ort,tvm")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        onnxdfq.compare_runtimes(tmp_path / "m.onnx", DATA)


def test_the_command_line(quantized: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=DATA)
    flags = ["evaluate", str(quantized), str(tmp_path / "data.npz"), "--quiet", "--runtime", "ort, engine"]
    shown = CliRunner().invoke(main, flags, catch_exceptions=False)
    assert shown.exit_code == 0 and len(shown.stdout.splitlines()) == 3 and "steps" in shown.stdout
    rows = json.loads(CliRunner().invoke(main, [*flags, "--json"]).stdout)["runtimes"]
    assert [row["runtime"] for row in rows] == ["ort", "engine"]
    refused = CliRunner().invoke(main, [*flags, "--against", str(quantized)])
    assert refused.exit_code == 2 and "leave --against out" in refused.stderr
