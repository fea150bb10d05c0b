"""Two inputs, integer outputs, and requirements, at the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from onnxdfq.cli.main import main

from ..graphs import build

RANDOM = np.random.default_rng(0)


def cli(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def weight(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32)


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """Tokens and a signal to scores of 3 classes."""
    model = build(
        """(float[N,6] x, int64[N,4] tokens) => (float[N,3] y) {
            e = Gather(table, tokens)
            m = ReduceMean<keepdims=0>(e, one)
            h = Concat<axis=1>(x, m)
            a = Gemm(h, w)
            r = Relu(a)
            y = Gemm(r, v)
        }""",
        table=weight(9, 5),
        one=np.array([1]),
        w=weight(11, 16),
        v=weight(16, 3),
    )
    ir.save(model, tmp_path / "two.onnx")
    return tmp_path / "two.onnx"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """A signal to the class itself, an integer, by scores that no output shows."""
    model = build(
        """(float[N,6] x) => (int64[N] y) {
            a = Gemm(x, w)
            r = Relu(a)
            s = Gemm(r, v)
            y = ArgMax<axis=1,keepdims=0>(s)
        }""",
        w=weight(6, 16),
        v=weight(16, 3),
    )
    ir.save(model, tmp_path / "answers.onnx")
    return tmp_path / "answers.onnx"


def by_hand(path: Path, x: np.ndarray, tokens: np.ndarray | None = None) -> np.ndarray:
    """The classes that the float network gives."""
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    h = x if tokens is None else np.concatenate([x, values["table"][tokens].mean(axis=1)], axis=1)
    return np.asarray((np.maximum(h @ values["w"], 0) @ values["v"]).argmax(axis=1))


def data_of(path: Path, name: str, count: int = 200) -> tuple[Path, np.ndarray]:
    """A file of samples whose labels are right but for the first tenth, and the arrays' classes."""
    x = RANDOM.standard_normal((count, 6)).astype(np.float32)
    arrays: dict[str, np.ndarray] = {"x": x}
    if "two" in path.name:
        arrays["tokens"] = RANDOM.integers(0, 9, (count, 4))
    classes = by_hand(path, *arrays.values())
    labels = classes.copy()
    labels[: count // 10] = (labels[: count // 10] + 1) % 3
    np.savez(path.parent / name, **arrays, labels=labels)
    return path.parent / name, classes


@pytest.mark.parametrize("name", ["two_inputs", "answers"])
def test_a_float_model_is_right_where_its_labels_are(request: pytest.FixtureRequest, name: str) -> None:
    path = request.getfixturevalue(name)
    data, _ = data_of(path, "data.npz")
    result = cli("evaluate", path, data, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"count": 200, "top1": 0.9}


@pytest.mark.parametrize("name", ["two_inputs", "answers"])
def test_a_compressed_model_beside_its_original(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    path = request.getfixturevalue(name)
    data, _ = data_of(path, "data.npz")
    written = tmp_path / "q.onnx"
    result = cli("compress", path, "-o", written, "--calibration", data, "--evaluate", data, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["count"] == 200 and report["top1_float"] == 0.9
    assert report["agreement"] > 0.95 and report["sqnr_db"] > 25
    assert abs(report["top1"] - 0.9) <= 1 - report["agreement"] + 1e-9
    again = json.loads(cli("evaluate", written, data, "--against", path, "--json").stdout)
    for key in ("count", "top1", "top1_float", "agreement"):
        assert again[key] == report[key]
    assert again["sqnr_db"] == pytest.approx(report["sqnr_db"], abs=0.1)


def test_inputs_that_nobody_gives_are_told(two_inputs: Path, tmp_path: Path) -> None:
    data, _ = data_of(two_inputs, "data.npz")
    with np.load(data) as arrays:
        np.savez(tmp_path / "half.npz", x=arrays["x"])
    fed = (
        "The input 'tokens' (int64 N,4) is fed uniform noise from 0 to 8 (Gather reads a table of 9 rows); "
        "--input tokens=... says otherwise."
    )
    for given in ([], ["--calibration", tmp_path / "half.npz"]):
        result = cli(
            "compress", two_inputs, "-o", tmp_path / "q.onnx", "--force", "--method", "noise", *given, "--json"
        )
        if given:
            result = cli("compress", two_inputs, "-o", tmp_path / "q.onnx", "--force", *given, "--json")
        assert json.loads(result.stdout)["notes"].count(fed) == 1, result.output
    result = cli("compress", two_inputs, "-o", tmp_path / "q.onnx", "--force", "--calibration", data, "--json")
    assert not any("is fed" in note for note in json.loads(result.stdout)["notes"])
    result = cli("compress", two_inputs, "-o", tmp_path / "q.onnx", "--force", "--input", "tokens=3", "--json")
    assert any("is fed 3 everywhere (as --input says)" in note for note in json.loads(result.stdout)["notes"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--input", "token=3"], "--input names 'token', and the model has no such input; it has 'x', 'tokens'."),
        (
            ["--input", "tokens=many"],
            "--input tokens=many is not image, normal:MEAN:STD, uniform:LOW:HIGH, or a number.",
        ),
        (["--input", "tokens"], "is not NAME=WHAT"),
        (["--require", "sqnr=nan"], "--require 'sqnr=nan' is not sqnr=DB"),
        (["--require", "top1=1"], "--require 'top1=1' is not sqnr=DB"),
    ],
)
def test_nonsense_is_refused_before_any_work(two_inputs: Path, given: list[str], message: str) -> None:
    result = cli("compress", two_inputs, *given)
    assert result.exit_code == 2 and message in result.stderr
    assert [path.name for path in two_inputs.parent.iterdir()] == ["two.onnx"]


@pytest.mark.parametrize("form", [["--json"], []])
def test_a_file_that_is_not_good_enough_is_written_all_the_same(two_inputs: Path, form: list[str]) -> None:
    written = two_inputs.with_name("q.onnx")
    result = cli("compress", two_inputs, "-o", written, "--force", "--require", "sqnr=10", *form)
    assert result.exit_code == 0, result.output
    result = cli("compress", two_inputs, "-o", written, "--force", "--require", "sqnr=200", *form)
    assert result.exit_code == 1 and written.exists()
    assert f"onnxdfq: --require sqnr=200 is not met by {written}: it has" in result.stderr
    if form:
        assert json.loads(result.stdout)["output"] == str(written)


def test_a_requirement_of_several_files_names_each(two_inputs: Path) -> None:
    output = two_inputs.with_name("q.onnx")
    result = cli("compress", two_inputs, "-o", output, "--target", "ort", "--target", "qnn", "--require", "sqnr=200")
    assert result.exit_code == 1
    assert result.stderr.count("is not met by") == 2
    assert {path.name for path in output.parent.glob("q.*")} == {"q.ort.onnx", "q.qnn.onnx"}


def test_what_stays_float_is_told_by_node_and_reason(two_inputs: Path) -> None:
    model = onnx.load(two_inputs)
    model.graph.node[-2].CopyFrom(onnx.helper.make_node("Erf", ["a"], ["r"], name="curve"))
    onnx.save(model, two_inputs)
    written = two_inputs.with_name("q.onnx")
    report = json.loads(cli("compress", two_inputs, "-o", written, "--json").stdout)
    findings = json.loads(cli("lint", written, "--json").stdout)["findings"]
    verdicts = [finding["verdict"] for finding in findings]
    assert (report["nodes_integer"], report["nodes_float"]) == (verdicts.count("integer"), verdicts.count("float"))
    assert report["nodes_float"] > 0
    (note,) = (note for note in report["notes"] if "stay float" in note)
    total = report["nodes_integer"] + report["nodes_float"]
    assert note.startswith(f"{report['nodes_float']} of {total} computing nodes stay float for the target ort (")
    assert "Erf curve: " in note and note.endswith(f"`onnxdfq lint {written}` lists all.")


def test_weights_alone_leave_nothing_to_tell_of_floats(two_inputs: Path) -> None:
    written = two_inputs.with_name("q.onnx")
    report = json.loads(cli("compress", two_inputs, "-o", written, "--bits", "w8a32", "--json").stdout)
    assert not any("stay float" in note for note in report["notes"])


def test_the_memory_of_the_process_is_told(two_inputs: Path) -> None:
    report = json.loads(cli("compress", two_inputs, "-o", two_inputs.with_name("q.onnx"), "--json").stdout)
    assert 50e6 < report["peak_memory"] < 50e9  # bytes, whatever unit the system counts in
