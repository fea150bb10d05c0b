"""What can be refused by paths, options and the file alone is refused before anything slow is imported."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"
CODE = """
import contextlib, io, json, sys, onnxdfq.cli.main as cli
codes, errors = [], []
for arguments in json.load(sys.stdin):
    sys.argv, error = ["onnxdfq", *arguments], io.StringIO()
    try:
        with contextlib.redirect_stderr(error): cli.main()
    except SystemExit as end: codes.append(end.code)
    errors.append(error.getvalue())
for line in (codes, sorted({"torch", "onnxsim", "onnxruntime"} & set(sys.modules)), *errors): print(json.dumps(line))
"""


def one_node(op_type: str, sizes: tuple[int | str, ...], path: Path, **attributes: int) -> Path:
    node = helper.make_node(op_type, ["x", *(["scale"] if op_type == "QuantizeLinear" else [])], ["y"], **attributes)
    kind = TensorProto.UINT8 if op_type == "QuantizeLinear" else TensorProto.FLOAT
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", kind, sizes)],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


CASES = {
    "missing": "there is no such file",
    "text": "is not an ONNX model",
    "quantized": "is already quantized",
    "open": "unknown sizes",
    "device": "Unknown device",
    "folder": "does not exist; create it first",
    "exists": "exists; give another name",
}
OF_COMPRESS = {"option": "weights take 2 to 8 bits", "calibration": "there is no such file or folder"}


def test_refusals_import_nothing_slow(tmp_path: Path) -> None:
    """One process for all: whatever one of them imports is there at the end."""
    (tmp_path / "notes.onnx").write_text("no model at all")
    given: dict[str, list[str | Path]] = {
        "missing": [tmp_path / "absent.onnx"],
        "text": [tmp_path / "notes.onnx"],
        "quantized": [one_node("QuantizeLinear", (1, 3, 8, 8), tmp_path / "q.onnx")],
        "open": [one_node("Relu", (1, 3, "height", "width"), tmp_path / "open.onnx")],
        "option": [SAMPLE, "--bits", "w9a8"],
        "device": [SAMPLE, "--device", "gpu"],
        "folder": [SAMPLE, "-o", tmp_path / "absent" / "out.onnx"],
        "exists": [SAMPLE, "-o", tmp_path / "notes.onnx"],
        "calibration": [SAMPLE, "--calibration", tmp_path / "absent.npz"],
    }
    commands, wanted = [], []
    for command, cases in (("compress", {**CASES, **OF_COMPRESS}), ("synthesize", CASES)):
        for case, said in cases.items():
            for method in ([], ["--method", "noise"]):
                output = [] if "-o" in given[case] else ["-o", tmp_path / "out"]
                commands.append([command, *map(str, (*given[case], *output)), *method])
                wanted.append(said)
    run = subprocess.run(
        [sys.executable, "-c", CODE], input=json.dumps(commands), capture_output=True, text=True, check=True
    )
    codes, imported, *errors = map(json.loads, run.stdout.splitlines())
    assert imported == []
    assert codes == [2] * len(commands)
    for command, said, error in zip(commands, wanted, errors, strict=True):
        assert said in error, command
