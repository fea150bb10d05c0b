"""`write_artifacts`: for devices that have onnxruntime-training 1.19.2, its last version, its own four files.

It differentiates no quantizers: what trains is the float network that a QDQ file stands for.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.model_file import save_model
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.model_file.writing import make_folder, staging
from onnxdfq.scratch import scratch_folder
from onnxdfq.training.on_device.package import Package, Training, check_new, opened, trained_output
from passes.graph.compared import FLOATS
from passes.graph.editing import name_of
from passes.quantize.reading import read_quantizers
from passes.quantize.take_out import TakeOutQuantizers
from passes.training.losses import logits_of
from passes.training.parameters import Parameter, find_parameters

FILES = ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint")
VERSION = "1.19.2"
REQUIREMENTS = Path(__file__).with_name("ort-training.txt")
SECONDS = 600
_ASK = "import onnxruntime.training.artifacts, onnxruntime; print(onnxruntime.__version__)"


def write_artifacts(
    source: Path,
    folder: Path,
    training: Training,
    python: Path | None,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
) -> Package:
    """Writes `FILES`.

    Args:
        source, folder, training, input_shape, force: As for `write_package`.
        python: The interpreter of an environment with onnxruntime-training. It is run.

    Raises:
        ModelFileError, InputError, OutputError: As `write_package` does, and where there is no such interpreter.
    """
    if training.train == "scales":
        raise InputError("onnxruntime-training has no gradient for scales; leave --format out.", field="train")
    check_new(folder, force=force)
    found = checked(python)
    model = opened(source, input_shape)
    try:
        TakeOutQuantizers(read_quantizers(model.graph))(model)
        infer_shapes(model, strict=False)
        output = trained_output(model, training.output)
        parameters = find_parameters(model.graph, output, training.train)
    except ValueError as error:
        raise InputError(f"{source} cannot train: {error}.") from error
    judged = logits_of(output) if training.loss == "cross-entropy" else output
    model.graph.outputs.clear()
    model.graph.outputs.append(judged)
    with scratch_folder() as scratch:
        save_model(model, scratch / "model.onnx")
        _generate(found, scratch, model, parameters, training, source)
        make_folder(folder)
        with staging(force=force) as staged:
            for name in FILES:
                with staged.file(folder / name) as file:
                    shutil.copyfile(scratch / name, file)
        size = sum((scratch / name).stat().st_size for name in FILES[2:])
    return Package(
        path=folder,
        parameters=sum(one.start.size for one in parameters),
        tensors=len(parameters),
        state_bytes=size,
        notes=("onnxruntime-training differentiates no quantizers: the float network trains, without them.",),
    )


def checked(python: Path | None) -> Path:
    """The interpreter. Raises InputError: none is named, or it lacks the package; says how to make one."""
    advice = (
        f"onnxruntime-training {VERSION} takes over onnxruntime's folder and needs an environment of its own: "
        f"python3.12 -m venv ort-training, then ort-training/bin/pip install -r {REQUIREMENTS}, and give "
        "--ort-training-python ort-training/bin/python"
    )
    if python is None:
        raise InputError(f"--format ort-training needs an interpreter; {advice}.")
    try:
        run = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, check=False, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{python} does not run ({type(error).__name__}); {advice}.") from error
    version = run.stdout.strip().splitlines()[-1:]
    if run.returncode or version != [VERSION]:
        lacks = f"has version {version[0]}" if version else "does not import onnxruntime.training.artifacts"
        raise InputError(f"{python} {lacks}; {advice}.")
    return python


def _generate(
    python: Path, folder: Path, model: ir.Model, parameters: Sequence[Parameter], training: Training, source: Path
) -> None:
    trained = [one.name for one in parameters]
    floats = [name_of(value) for value in model.graph.initializers.values() if value.dtype in FLOATS]
    given = {
        "model": str(folder / "model.onnx"),
        "folder": str(folder),
        "trained": trained,
        "frozen": [name for name in floats if name not in trained],
        "loss": training.loss,
        "optimizer": training.optimizer,
    }
    program = Path(__file__).with_name("artifacts.py")
    run = subprocess.run(
        [python, "-I", program], input=json.dumps(given), capture_output=True, text=True, check=False, timeout=SECONDS
    )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"onnxruntime-training makes no artefacts of {source}: {reason}")
