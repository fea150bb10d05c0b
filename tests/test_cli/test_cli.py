"""The command line as a user meets it: what it writes, what it prints, and one sentence for every fault."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.cli.main import main

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
QUICK = ["--method", "noise", "--images", "16"]

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(DIGITS / "digits.onnx", tmp_path / "digits.onnx"))


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Runs a command that must fail; returns the one sentence it says."""

    def run(*arguments: Any, code: int = 2) -> str:
        result = cli(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == "" and "Traceback" not in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    return run


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(path)
    edit(proto)
    onnx.save(proto, path)
    return path


def folder(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# what it does


def test_compress_writes_beside_the_input_and_reports(cli: Cli, model: Path) -> None:
    before = model.read_bytes()
    result = cli("compress", model, *QUICK, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    output = model.with_name("digits.w8a8.onnx")
    assert report["output"] == str(output) and output.exists()
    assert report["bytes"] == output.stat().st_size and report["images"] == 16
    assert 0 <= report["agreement_images"] <= 1
    assert model.read_bytes() == before
    onnx.checker.check_model(output, full_check=True)


def test_same_seed_same_bytes(cli: Cli, model: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert cli("compress", model, *QUICK, "--seed", seed, "-o", tmp_path / f"{name}.onnx").exit_code == 0
    a, b, c = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b != c


def test_evaluate_and_inspect_what_was_written(cli: Cli, model: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q.onnx"
    data = DIGITS / "digits_test.npz"
    written = cli("compress", model, "--calibration", data, "-o", quantized, "--evaluate", data, "--json")
    assert written.exit_code == 0, written.output
    found = json.loads(cli("evaluate", quantized, data, "--against", model, "--json").stdout)
    assert set(found) == {"top1", "count", "top1_float", "agreement", "sqnr_db"}
    assert found["count"] == len(np.load(data)["labels"])
    assert found["top1"] >= found["top1_float"] - 0.01
    assert {key: json.loads(written.stdout)[key] for key in found} == found
    seen = json.loads(cli("inspect", quantized, "--json").stdout)
    assert seen["quantized"]["power_of_two"] is True and seen["batch_norms"] == 0
    assert seen["provenance"]["bits"] == "w8a8" and seen["provenance"]["method"] == "file"


def test_inspect_a_float_model(cli: Cli, model: Path) -> None:
    seen = json.loads(cli("inspect", model, "--json").stdout)
    assert seen["batch_norms"] > 0 and seen["quantized"] == {} and seen["without_gradient"] == []
    assert "batch norms" in cli("inspect", model).stdout


def test_inspect_in_words(cli: Cli, model: Path, tmp_path: Path, shared_cases: Path) -> None:
    text = cli("inspect", shared_cases / "wrong_input_shape_advice.onnx").stdout
    assert "none seen; whether there were any cannot be told from the file" in text
    assert cli("compress", model, *QUICK, "-o", tmp_path / "q.onnx").exit_code == 0
    assert "weights per: channel, zero points: yes, power of two: " in cli("inspect", tmp_path / "q.onnx").stdout


def test_a_recipe_file_and_flags_that_overrule_it(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        'method = "noise"\nimages = 16\nbits = "w4a8"\nscheme = "free"\ntuning = "none"\n'
    )
    result = cli("compress", model, "--recipe", tmp_path / "recipe.toml", "--bits", "w5a8", "--json")
    assert result.exit_code == 0, result.output
    seen = json.loads(cli("inspect", tmp_path / "digits.w5a8.onnx", "--json").stdout)
    assert (seen["provenance"]["scheme"], seen["provenance"]["bits"]) == ("free", "w5a8")
    assert seen["quantized"]["power_of_two"] is False


@pytest.mark.slow
def test_synthesized_images_calibrate_to_the_same_thresholds(cli: Cli, model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images.npz"
    made = cli("synthesize", model, "-o", images, *QUICK, "--json")
    assert made.exit_code == 0, made.output
    assert set(np.load(images, allow_pickle=False).files) >= {"images"}
    assert cli("compress", model, *QUICK, "-o", tmp_path / "a.onnx").exit_code == 0
    assert cli("compress", model, "--calibration", images, "-o", tmp_path / "b.onnx").exit_code == 0
    scales = [
        {i.name: numpy_helper.to_array(i).tolist() for i in onnx.load(tmp_path / f"{n}.onnx").graph.initializer}
        for n in "ab"
    ]
    assert scales[0] == scales[1]


def test_inspect_sees_weights_and_scales_of_qlinear_operators(cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("compress", model, *QUICK, "--target", "tflite", "-o", tmp_path / "q.onnx").exit_code == 0
    seen = json.loads(cli("inspect", tmp_path / "q.onnx", "--json").stdout)["quantized"]
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node)
    kernels = sum(count for name, count in kinds.items() if name.startswith("QLinear"))
    assert kinds["QLinearConv"] > 0
    assert {key: seen[key] for key in ("form", "by", "activations", "weights", "weight_bits", "power_of_two")} == {
        "form": "operators on integers",
        "by": "onnxdfq",
        "activations": kinds["QuantizeLinear"] + kernels,
        "weights": kinds["QLinearConv"] + kinds["QLinearMatMul"],
        "weight_bits": [8],
        "power_of_two": True,
    }


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, onnxdfq.cli.main; sys.argv = ['onnxdfq', '--help']\n"
    code += (
        "try: onnxdfq.cli.main.main()\nexcept SystemExit: print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("set()")


def test_interrupt_leaves_nothing_behind(model: Path) -> None:
    command = [sys.executable, "-m", "onnxdfq", "compress", str(model), "--method", "dgh", "--steps", "100000"]

    def hear_interrupts() -> None:  # a job in the background is started deaf to them, and its children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    terminal, end = os.openpty()  # only a terminal is told of progress, and that tells when the work has begun
    pipes = {"stdout": subprocess.PIPE, "stderr": end}
    with subprocess.Popen(command, preexec_fn=hear_interrupts, **pipes) as process:
        os.close(end)
        said = b""
        while b" left " not in said:
            said += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # what Linux raises once nobody writes any more
            while chunk := os.read(terminal, 4096):
                said += chunk
        out, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 130, said
    assert b"interrupted" in said and b"Traceback" not in said and out == b""
    assert folder(model.parent) == {"digits.onnx"}


# what it refuses


def test_not_onnx(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    assert "is not an ONNX model" in refused("compress", tmp_path / "x.onnx")


def test_absent(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no such file" in refused("compress", tmp_path / "x.onnx")


def test_truncated(refused: Callable[..., str], model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    assert "is cut off" in refused("compress", model)


def test_an_operator_that_nothing_runs(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        (last,) = (node for node in proto.graph.node if proto.graph.output[0].name in node.output)
        last.output[0] = "before"
        output = proto.graph.output[0].name
        proto.graph.node.append(helper.make_node("Frobnicate", ["before"], [output], name="odd", domain="com.acme"))
        proto.opset_import.append(helper.make_opsetid("com.acme", 1))

    message = refused("compress", change(model, edit), *QUICK)
    assert "Frobnicate" in message and "ONNX Runtime does not run" in message and "--op-library" in message


def test_no_batch_norm(refused: Callable[..., str], tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), "f4"), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    message = refused("compress", tmp_path / "x.onnx", "--method", "dgh")
    assert "whether one was folded at export or the network never had any cannot be told" in message
    assert "onnxdfq.export" in message and "--calibration" in message


def test_weights_that_are_not_numbers(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(array, "poisoned"))
        for node in proto.graph.node:
            if node.op_type == "Conv":
                node.input[1] = "poisoned"
                break

    assert "poisoned" in refused("compress", change(model, edit), *QUICK)


@pytest.mark.parametrize("location", ["absent.bin", "../outside.bin", "/etc/hostname", "link.bin"])
def test_external_data_missing_or_outside(refused: Callable[..., str], model: Path, location: str) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    (model.parent / "link.bin").symlink_to("/etc/hostname")
    (model.parent / "inner").mkdir()
    proto = onnx.load(model)
    edit(proto)
    path = model.parent / "inner" / "m.onnx" if location == "../outside.bin" else model
    path.write_bytes(proto.SerializeToString())
    (model.parent / "outside.bin").write_bytes(b"\0" * 4096)
    message = refused("compress", path, *QUICK)
    assert location in message and ("missing" if location == "absent.bin" else "outside") in message


def test_already_quantized(refused: Callable[..., str], cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("compress", model, *QUICK, "-o", tmp_path / "q.onnx").exit_code == 0
    assert "quantized" in refused("compress", tmp_path / "q.onnx")


def test_unknown_input_shape(refused: Callable[..., str], cli: Cli, model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        del proto.graph.value_info[:]

    message = refused("compress", change(model, edit), *QUICK)
    assert "--input-shape" in message
    assert cli("compress", model, *QUICK, "--input-shape", "1,1,8,8").exit_code == 0


def test_zero_size_input(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
        del proto.graph.value_info[:]

    assert "size 0" in refused("compress", change(model, edit), *QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4x8"], "--bits: '4x8' is not of the form w4a8"),
        (["--bits", "w1a8"], "weights take 2 to 8 bits"),
        (["--method", "dhg"], "Unknown method: 'dhg'. Did you mean 'dgh'?"),
        (["--target", "ot"], "Unknown target: 'ot'. Did you mean 'ort'?"),
        (["--effort", "quick"], "Unknown effort: 'quick'"),
        (["--device", "tpu"], "Unknown device: 'tpu'"),
        (["--images", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--output", "q.npz", "--save-images", "q.npz"], "both the model and the images"),
        (["--normalize", "mnist"], "--normalize 'mnist'"),
        (["--input-shape", "1,x"], "--input-shape '1,x'"),
        (["--calibration", "absent.npz"], "there is no such file"),
        (["--recipe", "absent.toml"], "The recipe absent.toml: there is no such file"),
    ],
)
def test_settings_that_cannot_be(refused: Callable[..., str], model: Path, arguments: list[str], message: str) -> None:
    assert message in refused("compress", model, *arguments)
    assert folder(model.parent) == {"digits.onnx"}


def test_output_exists(refused: Callable[..., str], cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("mine")
    for place in (tmp_path, tmp_path / ".."):
        said = refused("compress", model, *QUICK, "-o", place, "--target", "ort", "--target", "compact")
        assert "is a folder; give the name of a file" in said
    assert "--force" in refused("compress", model, *QUICK, "-o", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "mine"
    assert cli("compress", model, *QUICK, "-o", tmp_path / "out.onnx", "--force").exit_code == 0


def test_the_input_is_never_the_output(refused: Callable[..., str], model: Path) -> None:
    before = model.read_bytes()
    assert "is the model itself" in refused("compress", model, *QUICK, "-o", model, "--force")
    assert model.read_bytes() == before


def test_data_of_the_user_is_never_replaced(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    data = Path(shutil.copy(DIGITS / "digits_test.npz", tmp_path / "mine.npz"))
    (tmp_path / "link.npz").symlink_to(data)
    before = data.read_bytes()
    for option, given, what in (
        ("-o", "--calibration", "the calibration data"),
        ("--save-images", "--evaluate", "the labelled data"),
    ):
        message = refused("compress", model, *QUICK, "--force", given, data, option, tmp_path / "link.npz")
        assert f"is {what}; give another name with {option}" in message
    assert data.read_bytes() == before


def test_a_folder_is_no_model(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", tmp_path):
        assert "is a folder; give an ordinary file" in refused("compress", path, *QUICK)


def test_output_folder_absent(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused("compress", model, *QUICK, "-o", tmp_path / "no" / "out.onnx")


def test_output_folder_not_writable(
    refused: Callable[..., str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, for whom every folder is writable: the system's answer is simulated
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    assert "is not writable" in refused("compress", model, *QUICK, "-o", tmp_path / "out.onnx")


def test_disk_full(refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "the disk is full" in refused("compress", model, *QUICK, code=1)
    assert folder(model.parent) == {"digits.onnx"}


def test_labels_that_do_not_fit(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.array([0, 10]))
    assert "do not fit the classes" in refused("evaluate", model, tmp_path / "d.npz")
    assert "do not fit the classes" in refused("compress", model, *QUICK, "--evaluate", tmp_path / "d.npz")


def test_pickle_is_refused(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], dtype=object))
    assert "would need pickle" in refused("evaluate", model, tmp_path / "d.npz")


def test_help_has_sections_and_an_example(cli: Cli) -> None:
    said = cli("compress", "--help").output
    titles = ["What:", "How:", "Targets:", "Data:", "Output:", "Example:"]
    assert [line for line in said.splitlines() if line in titles] == titles
    assert "Other:" not in said, "an option stands in no section"
    assert "onnxdfq compress model.onnx --bits w8a8" in said


@pytest.mark.slow
def test_verbose_logs_what_passes_change_and_quiet_shows_nothing(model: Path) -> None:
    command = [sys.executable, "-m", "onnxdfq", "compress", model, *QUICK, "--force"]
    loud = subprocess.run([*command, "-v"], capture_output=True, text=True, check=True)
    assert "passes.canonical.fold_batch_norm: " in loud.stderr and "passes.write.insert_qdq: " in loud.stderr
    plain = subprocess.run([*command, "-q"], capture_output=True, text=True, check=True)
    assert plain.stderr == ""


def test_a_recipe_file_has_tables_of_methods(cli: Cli, refused: Callable[..., str], model: Path) -> None:
    recipe = model.parent / "recipe.toml"
    recipe.write_text('method = "dgh"\nimages = 8\ntarget = ["ort", "compact"]\n\n[dgh]\nsteps = 1\n')
    found = json.loads(cli("compress", model, "--recipe", recipe, "--json").stdout)
    assert set(found["targets"]) == {"ort", "compact"} and found["images"] == 8
    recipe.write_text("[dgh]\nstep = 1\n")
    assert "Did you mean 'steps'?" in refused("compress", model, "--recipe", recipe)
    recipe.write_text("[dhg]\nsteps = 1\n")
    assert "Did you mean 'dgh'?" in refused("compress", model, "--recipe", recipe)
