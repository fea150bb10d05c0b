"""The package as a device has it: numpy, ONNX Runtime, and nothing of ours."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, OutputError
from onnxdfq.model_file import save_model
from onnxdfq.training.on_device.package import FILES
from tests.graphs import build, plain_network

from .conftest import SIDE

DEVICE = """
import runpy, sys
for name in ("torch", "onnx", "onnx_ir", "onnxdfq", "onnxsim", "passes"):
    sys.modules[name] = None
sys.argv = ["train.py", "data.npz", "8", "16", "0.02"]
found = runpy.run_path("train.py", run_name="__main__")
import numpy as np
print(found["trained"]().run(None, {"image": np.load("data.npz")["image"]})[0].argmax(1).tolist())
"""


@pytest.fixture(scope="module")
def package(qdq_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "package"
    found = onnxdfq.finetune_package(qdq_file, output=folder, train="all")
    assert found.parameters == sum(
        array.size for key, array in np.load(folder / "state.npz").items() if key.startswith("parameter:")
    )
    return folder


def kernels(session_file: Path, saved: Path, values: dict[str, NDArray[np.generic]]) -> Counter[str]:
    """Operators of the optimised graph of infer.onnx with these initializers."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(saved)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in values.values()]
    options.add_external_initializers(list(values), arrays)
    onnxruntime.InferenceSession(session_file, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(saved).graph.node)


def test_a_device_trains_and_infers(package: Path, data: dict[str, NDArray[np.generic]], tmp_path: Path) -> None:
    device = shutil.copytree(package, tmp_path / "device")
    np.savez(device / "data.npz", **data)  # type: ignore[arg-type]
    run = subprocess.run(
        [sys.executable, "-I", "-c", DEVICE], cwd=device, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    *epochs, answers = run.stdout.strip().splitlines()
    losses = [float(line.rsplit(" ", 1)[1]) for line in epochs]
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    untrained = onnxruntime.InferenceSession(package / "infer.onnx").run(None, {"image": data["image"]})[0].argmax(1)
    assert np.mean(json.loads(answers) == data["labels"]) > np.mean(untrained == data["labels"]) + 0.3

    state = np.load(device / "trained.npz")
    values = {key.removeprefix("infer:"): state[key] for key in state if key.startswith("infer:")}
    found = kernels(device / "infer.onnx", tmp_path / "optimised.onnx", values)
    assert found["QLinearConv"] == 2 and found["QGemm"] + found["QLinearMatMul"] == 1
    assert not {"Conv", "Gemm", "MatMul"} & found.keys()


def test_untrained_it_is_the_model(package: Path, qdq_file: Path, data: dict[str, NDArray[np.generic]]) -> None:
    assert sorted(path.name for path in package.iterdir()) == sorted(FILES)
    feeds = {"image": data["image"]}
    found, expected = (
        onnxruntime.InferenceSession(path).run(None, feeds) for path in (package / "infer.onnx", qdq_file)
    )
    np.testing.assert_array_equal(found[0], expected[0])


def test_the_data_file_may_be_rewritten(package: Path, data: dict[str, NDArray[np.generic]], tmp_path: Path) -> None:
    """What the README tells languages without `add_external_initializers`."""
    device = shutil.copytree(package, tmp_path / "device")
    state = {key: array for key, array in np.load(device / "state.npz").items() if key.startswith("infer:")}
    changed = {key: array // 2 if array.dtype == np.int8 else array + 1 for key, array in state.items()}
    (device / "infer.onnx.data").write_bytes(b"".join(array.tobytes() for array in changed.values()))
    options = onnxruntime.SessionOptions()
    arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in changed.values()]
    options.add_external_initializers([key.removeprefix("infer:") for key in changed], arrays)
    expected = onnxruntime.InferenceSession(package / "infer.onnx", options).run(None, {"image": data["image"]})[0]
    found = onnxruntime.InferenceSession(device / "infer.onnx").run(None, {"image": data["image"]})[0]
    np.testing.assert_array_equal(found, expected)
    untrained = onnxruntime.InferenceSession(package / "infer.onnx").run(None, {"image": data["image"]})[0]
    assert (found != untrained).any()


def test_the_loop_is_as_short_as_it_is_said_to_be() -> None:
    loop = Path(onnxdfq.__path__[0]) / "training" / "on_device" / "loop.py"
    lines = loop.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 45


def test_the_command_line_writes_it_and_replaces_only_by_force(qdq_file: Path, tmp_path: Path) -> None:
    folder, runner = tmp_path / "package", CliRunner()
    first = runner.invoke(main, ["finetune-package", str(qdq_file), "-o", str(folder), "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert told["tensors"] == 2 and told["path"] == str(folder)
    again = runner.invoke(main, ["finetune-package", str(qdq_file), "-o", str(folder)])
    assert again.exit_code == 2 and f"{folder} exists" in again.stderr
    forced = runner.invoke(
        main, ["finetune-package", str(qdq_file), "-o", str(folder), "--force", "--optimizer", "sgd"]
    )
    assert forced.exit_code == 0, forced.output
    assert not [key for key in np.load(folder / "state.npz") if key.startswith("square:")]


def test_a_float_model_trains_too(tmp_path: Path, data: dict[str, NDArray[np.generic]]) -> None:
    path = tmp_path / "float.onnx"
    save_model(plain_network(side=SIDE), path)
    found = onnxdfq.finetune_package(path, output=tmp_path / "package", train="all")
    assert any("Nothing in the model is quantized" in note for note in found.notes)
    step = onnxruntime.InferenceSession(tmp_path / "package" / "step.onnx")
    state = np.load(tmp_path / "package" / "state.npz")
    feeds = {entry.name: state[entry.name] for entry in step.get_inputs() if entry.name in state}
    loss = step.run(["loss"], {**feeds, **data, "learning_rate": np.array(0.1, np.float32)})[0]
    assert np.isfinite(loss)


def refused(model: ir.Model, folder: Path, **given: str) -> str:
    path = folder / "model.onnx"
    ir.save(model, path)
    with pytest.raises(InputError) as error:
        onnxdfq.finetune_package(path, output=folder / "package", **given)  # type: ignore[arg-type]
    assert not (folder / "package").exists()
    return str(error.value)


def test_a_node_without_gradient_is_named(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,3] y) { h = Gemm (x, w) s = CumSum (h, a) y = Gemm (s, v) }"
    weights = {"w": np.ones((4, 3), "f4"), "a": np.array(1), "v": np.ones((3, 3), "f4")}
    told = refused(build(text, **weights), tmp_path, train="all")
    assert "CumSum 'CumSum_s' cannot be differentiated: there is no rule for this operator" in told
    # what lies before the parameters needs no gradient
    ir.save(build(text, **weights), tmp_path / "head.onnx")
    assert onnxdfq.finetune_package(tmp_path / "head.onnx", output=tmp_path / "head", train="head").tensors == 1


def test_a_model_without_a_head_is_told_so(tmp_path: Path) -> None:
    assert "has no head" in refused(build("(float[N,4] x) => (float[N,4] y) { y = Relu (x) }"), tmp_path)


@pytest.mark.parametrize(("train", "why"), [("scales", "no QuantizeLinear"), ("biases", "no layer with a bias")])
def test_what_cannot_train_because_it_is_not_there(train: str, why: str, tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,3] y) { y = Gemm (x, w) }"
    assert why in refused(build(text, w=np.ones((4, 3), "f4")), tmp_path, train=train)


def test_one_of_several_outputs_is_asked_for(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,3] y, float[N,3] z) { y = Gemm (x, w) z = Relu (y) }"
    model = build(text, w=np.ones((4, 3), "f4"))
    assert "the outputs 'y', 'z'" in refused(model, tmp_path)
    assert "Unknown output: 'q'" in refused(model, tmp_path, loss_on="q")
    onnxdfq.finetune_package(tmp_path / "model.onnx", output=tmp_path / "package", loss_on="z")


def test_classes_have_to_be_known(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N] y) { h = Gemm (x, w) y = ReduceSum <keepdims=0> (h, a) }"
    told = refused(build(text, w=np.ones((4, 3), "f4"), a=np.array([1])), tmp_path)
    assert "cross-entropy needs an output" in told


def test_a_folder_that_cannot_be_made_is_refused_first(qdq_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        onnxdfq.finetune_package(qdq_file, output=tmp_path / "none" / "package")
