"""The artefacts of onnxruntime-training, by an interpreter of an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.training.on_device.ort_training import FILES, REQUIREMENTS

SECONDS = 1200

TRAINS = """
import numpy as np
from onnxruntime.training import api
data, state = np.load("data.npz"), api.CheckpointState.load_checkpoint("checkpoint")
module = api.Module("training_model.onnx", state, "eval_model.onnx")
optimizer = api.Optimizer("optimizer_model.onnx", module)
module.train()
for _ in range(30):
    print(float(module(data["image"], data["labels"])))
    optimizer.step()
    module.lazy_reset_grad()
"""


@pytest.mark.parametrize(
    ("python", "why"),
    [
        (None, "--format ort-training needs an interpreter"),
        ("none/python", "none/python does not run"),
        (sys.executable, "does not import onnxruntime.training.artifacts"),
    ],
)
def test_without_an_interpreter_it_says_how_to_make_one(
    python: str | None, why: str, qdq_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        onnxdfq.finetune_package(
            qdq_file, output=tmp_path / "package", format="ort-training", ort_training_python=python
        )
    assert why in str(error.value)
    assert f"-m venv ort-training, then ort-training/bin/pip install -r {REQUIREMENTS}" in str(error.value)
    assert not (tmp_path / "package").exists()


def test_scales_do_not_train_there(qdq_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no gradient for scales"):
        onnxdfq.finetune_package(qdq_file, output=tmp_path / "package", train="scales", format="ort-training")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a fresh environment with what the requirements file asks for."""
    if sys.version_info[:2] > (3, 12):
        pytest.skip("onnxruntime-training 1.19.2 is there for CPython 3.10 to 3.12")
    folder = tmp_path_factory.mktemp("ort-training")
    venv.create(folder, with_pip=True)
    found = folder / "bin" / "python"
    try:
        run = subprocess.run(
            [found, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS],
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not install {REQUIREMENTS.name} within {SECONDS} seconds")
    if run.returncode:
        pytest.skip(f"pip could not install {REQUIREMENTS.name}: {run.stderr.strip().splitlines()[-1]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("train", ["head", "all"])
def test_its_artefacts_train(
    train: str, python: Path, qdq_file: Path, data: dict[str, NDArray[np.generic]], tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    found = onnxdfq.finetune_package(
        qdq_file,
        output=folder,
        train=train,  # type: ignore[arg-type]
        format="ort-training",
        ort_training_python=python,
    )
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert found.tensors == {"head": 2, "all": 6}[train]
    np.savez(folder / "data.npz", **data)  # type: ignore[arg-type]
    run = subprocess.run([python, "-I", "-c", TRAINS], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    losses = [float(line) for line in run.stdout.split()]
    assert losses[-1] < 0.9 * losses[0]
