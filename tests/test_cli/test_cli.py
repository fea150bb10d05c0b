"""The command line as a user meets it: what it writes and what it prints."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxdfq.cli.main import main

from .conftest import DIGITS, QUICK, Cli, folder


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


def test_help_has_sections_and_an_example(cli: Cli) -> None:
    said = cli("compress", "--help").output
    titles = ["What:", "How:", "Targets:", "Data:", "Output:", "Example:"]
    assert [line for line in said.splitlines() if line in titles] == titles
    assert "onnxdfq compress model.onnx --bits w8a8" in said


@pytest.mark.parametrize("command", [name for name, one in main.commands.items() if getattr(one, "sections", None)])
def test_every_option_stands_in_one_section(cli: Cli, command: str) -> None:
    said = cli(command, "--help").output
    assert "Other:" not in said and said.count("--seed S") == said.count("--output PATH") == 1


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
