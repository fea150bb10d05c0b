"""The same bits on every processor: files for ONNX Runtime need no exact kernels, and figures are measured by such."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.evaluation import saturation
from onnxdfq.evaluation.evaluation import Session

from ..slow import slow

Level = onnxruntime.GraphOptimizationLevel


def by_default(path: Path, x: np.ndarray[Any, Any], level: Level) -> np.ndarray[Any, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A convolution whose weights, as integers, reach 2 * 127 in pairs."""
    weight = np.random.default_rng(0).choice([-0.99, 0.99, 0.7], (8, 4, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["h"], name="loud", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 8, 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "loud.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(1).uniform(0, 1, (16, 4, 8, 8)).astype("f4"))
    return tmp_path / "images.npz"


@pytest.mark.parametrize("target", ["ort", "compact", "openvino"])
@pytest.mark.parametrize("scheme", ["power-of-two", slow("free")])
def test_optimised_is_unoptimised(case: Path, images: Path, tmp_path: Path, target: str, scheme: str) -> None:
    """Bit for bit, in default sessions; on a processor without VNNI it bites."""
    output = tmp_path / "q.onnx"
    onnxdfq.compress(case, calibration=images, target=target, scheme=scheme, output=output)
    x = np.load(images)["images"]
    np.testing.assert_array_equal(
        by_default(output, x, Level.ORT_ENABLE_ALL), by_default(output, x, Level.ORT_DISABLE_ALL)
    )


def test_the_case_that_was_found(shared_cases: Path, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    result = onnxdfq.compress(shared_cases / "saturation.onnx", method="noise", images=64, output=output)
    assert result.images is not None
    x = result.images.pixels
    fast = by_default(output, x, Level.ORT_ENABLE_ALL)
    np.testing.assert_array_equal(fast, by_default(output, x, Level.ORT_DISABLE_ALL))
    exact = by_default(shared_cases / "saturation.onnx", x, Level.ORT_ENABLE_ALL)
    assert 10 * np.log10(np.square(exact).sum() / np.square(fast - exact).sum()) >= 38


def test_tuned_integers_keep_within(case: Path, images: Path, tmp_path: Path) -> None:
    """`--tuning brecq` at 8 bits moves integers up and down; conftest looks at the file, too."""
    output = tmp_path / "q.onnx"
    np.savez(images, images=np.random.default_rng(1).uniform(0, 1, (64, 4, 8, 8)).astype("f4"))
    result = onnxdfq.compress(case, calibration=images, tuning="brecq", output=output)
    assert result.metrics["blocks_tuned"] == 1
    x = np.load(images)["images"]
    np.testing.assert_array_equal(
        by_default(output, x, Level.ORT_ENABLE_ALL), by_default(output, x, Level.ORT_DISABLE_ALL)
    )


@pytest.mark.parametrize("target", ["generic", "qnn", slow("tensorrt"), slow("tflite"), slow("vitisai")])
def test_figures_are_exact_for_targets_that_do_not_ask(case: Path, images: Path, target: str, tmp_path: Path) -> None:
    """These files may saturate ONNX Runtime's default kernels, but not the session that they are measured by."""
    output = tmp_path / "q.onnx"
    onnxdfq.compress(case, calibration=images, target=target, output=output, force=True)
    x = np.load(images)["images"][:1]  # some of these targets fix the batch
    (measured,) = Session(output).run(x)
    np.testing.assert_array_equal(measured, by_default(output, x, Level.ORT_DISABLE_ALL))
    assert Session(output).exact == (target != "tflite")  # int8 QLinear operators: their own kernels are exact


def test_an_evaluation_says_where_the_processor_saturates(
    case: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud, quiet = tmp_path / "loud.q.onnx", tmp_path / "quiet.q.onnx"
    onnxdfq.compress(case, calibration=images, target="qnn", output=loud)
    onnxdfq.compress(case, calibration=images, target="ort", output=quiet)
    found = CliRunner().invoke(main, ["evaluate", str(loud), str(images), "--json"])
    assert ("notes" in json.loads(found.stdout)) == saturation.saturates()
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    found = CliRunner().invoke(main, ["evaluate", str(loud), str(images)])
    assert found.exit_code == 0
    assert "note: This processor saturates in a layer of loud.q.onnx (loud): these figures are computed exactly" in (
        found.stderr
    )
    assert "session.x64quantprecision=1" in found.stderr
    assert "saturates" not in CliRunner().invoke(main, ["evaluate", str(quiet), str(images)]).stderr
    notes = onnxdfq.compress(case, calibration=images, target="qnn", output=loud, force=True).notes
    assert any("This processor saturates" in note for note in notes)
    monkeypatch.setattr(saturation, "saturates", lambda: False)
    assert "saturates" not in CliRunner().invoke(main, ["evaluate", str(loud), str(images)]).stderr


def test_lint_asks_for_exact_kernels(case: Path, images: Path, tmp_path: Path) -> None:
    loud, quiet = tmp_path / "loud.q.onnx", tmp_path / "quiet.q.onnx"
    onnxdfq.compress(case, calibration=images, target="qnn", output=loud)
    onnxdfq.compress(case, calibration=images, target="ort", output=quiet)

    def lint(path: Path, *more: str) -> Any:
        return CliRunner().invoke(main, ["lint", str(path), "--target", "ort", *more])

    told = lint(loud)
    assert told.exit_code == 0 and "it saturates on processors without VNNI" in told.stdout
    short = lint(loud, "--require", "exact")
    assert short.exit_code == 1 and "--require exact is not met by Conv loud." in short.stderr
    assert lint(quiet, "--require", "exact").exit_code == 0
    wrong = lint(quiet, "--require", "exact:Conv")
    assert wrong.exit_code == 2 and "write --require exact" in wrong.stderr
