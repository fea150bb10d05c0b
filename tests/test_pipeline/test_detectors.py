"""Detectors: boxes and scores in one output, and images on which nothing is found."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from passes.graph.parts import parts_of

from ..graphs import build
from ..test_report.planted import detector
from .conftest import Level, run

TARGETS = ("ort", "openvino", "compact", "tensorrt", "tflite")
FOUND = """(float[N,3,8,8] x) => (float[K,2] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b)
    r = Relu (h)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    hit = Greater (f, level)
    i = NonZero (hit)
    t = Transpose (i)
    k = GatherND (f, t)
    c = Unsqueeze (k, last)
    y = MatMul (c, v)
}"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Boxes up to some hundred, scores up to 1."""
    ir.save(detector(), tmp_path / "detector.onnx")
    return tmp_path / "detector.onnx"


def finder(path: Path, level: float) -> Path:
    """One row for each channel whose mean is above the level: a layer computes on as many rows as are found."""
    random = np.random.default_rng(0)
    model = build(
        FOUND,
        w=random.normal(size=(4, 3, 3, 3)).astype("f4"),
        b=np.zeros(4, "f4"),
        v=random.normal(size=(1, 2)).astype("f4"),
        level=np.array(level, "f4"),
        last=np.array([1]),
    )
    ir.save(model, path)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_scores_beside_boxes_are_not_lost(source: Path, tmp_path: Path, target: str) -> None:
    output = tmp_path / f"{target}.onnx"
    result = onnxdfq.compress(source, output=output, method="noise", images=32, target=target)
    level = result.metrics["sqnr_db_held_back"]
    assert level is not None and level > 15
    x = result.images.pixels[:8]
    scores = [run(path, {"x": x[:1]}, Level.ORT_DISABLE_ALL)[0][:, 4:] for path in (source, output)]
    assert np.abs(scores[0] - scores[1]).max() < 0.1 < scores[0].max()
    assert any("Concat_y" in note and "boxes (up to" in note and "stay float" in note for note in result.notes)
    assert not {"y", "scores"} & result.targets[target].plan.activations.keys()


def test_layers_in_front_of_the_join_compute_on_integers(source: Path, tmp_path: Path) -> None:
    onnxdfq.compress(source, output=tmp_path / "q.onnx", method="noise", images=16)
    run(tmp_path / "q.onnx", {"x": np.zeros((1, 3, 8, 8), "f4")}, Level.ORT_ENABLE_EXTENDED, tmp_path / "run.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3


def test_a_grid_that_somebody_decided_stays(source: Path, tmp_path: Path) -> None:
    """And then the scores are lost, which the verdict tells: the boxes would hide it."""
    (tmp_path / "plan.toml").write_text("[tensors.y]\nthreshold = 512.0\nsigned = true\nbits = 8\n")
    settings = {"method": "noise", "images": 32, "plan": tmp_path / "plan.toml"}
    result = onnxdfq.compress(source, output=tmp_path / "q.onnx", **settings)
    assert not any("stay float: the Concat" in note for note in result.notes)
    assert result.metrics["sqnr_db_held_back"] is not None and result.metrics["sqnr_db_held_back"] < 5
    assert result.metrics["verdict"] == "poor"


def test_the_worst_part_of_an_output_counts(source: Path, tmp_path: Path) -> None:
    other = detector()
    other.graph.initializers["ws"].const_value = ir.tensor(np.zeros((2, 16, 1, 1), "f4"), name="ws")
    other.graph.initializers["bs"].const_value = ir.tensor(np.full(2, -40, "f4"), name="bs")
    ir.save(other, tmp_path / "blind.onnx")
    x = np.random.default_rng(0).uniform(size=(4, 3, 8, 8)).astype("f4")
    assert parts_of(ir.load(source).graph.outputs[0]) is not None
    found = onnxdfq.evaluate(tmp_path / "blind.onnx", x, against=source)
    assert found.sqnr_db == pytest.approx(0.0, abs=1e-3)  # all that is in the scores is lost; in the boxes nothing is


def test_what_no_input_gives_a_number_stays_float(tmp_path: Path) -> None:
    path = finder(tmp_path / "finder.onnx", level=1e6)
    result = onnxdfq.compress(path, output=tmp_path / "q.onnx", method="noise", images=16)
    assert any("hold no number on any of the inputs" in note for note in result.notes)
    assert result.metrics["verdict"] == "unknown"
    assert any("nobody knows what it is worth" in note for note in result.notes)
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype("f4")
    assert run(tmp_path / "q.onnx", {"x": x}, Level.ORT_ENABLE_ALL)[0].shape == (0, 2)


def test_what_some_inputs_give_no_number_is_quantized(tmp_path: Path) -> None:
    path = finder(tmp_path / "finder.onnx", level=1.0)
    result = onnxdfq.compress(path, output=tmp_path / "q.onnx", method="noise", images=16)
    assert not any("hold no number" in note for note in result.notes)
    assert result.metrics["sqnr_db_held_back"] is not None and result.metrics["verdict"] != "unknown"


def test_a_file_of_which_nothing_is_known_meets_no_requirement(tmp_path: Path) -> None:
    path = finder(tmp_path / "finder.onnx", level=1e6)
    command = ["compress", path, "-m", "noise", "--images", "16", "--require", "sqnr=1", "-o", tmp_path / "q.onnx"]
    done = CliRunner().invoke(main, [*map(str, command)])
    assert done.exit_code == 1
    assert "there was nothing to compare" in done.output
