"""A real network on real images that have changed: it learns them with what the package holds, and nothing else."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import onnxdfq

pytestmark = pytest.mark.slow

CALIBRATED, TRAINED, TESTED = slice(0, 128), slice(128, 896), slice(0, 500)


def chosen(file: Path, part: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images as ResNet-8 takes them, pixels of 0 to 255, and labels: the file has them class by class."""
    found = np.load(file)
    rows = np.random.default_rng(0).permutation(len(found["labels"]))[part]
    return found["images"][rows].transpose(0, 3, 1, 2).astype(np.float32), found["labels"][rows].astype(np.int64)


def drifted(file: Path, part: slice) -> dict[str, NDArray[np.generic]]:
    """Images that are darker, of less contrast, and noisy."""
    images, labels = chosen(file, part)
    images = 0.7 * images - 40 + np.random.default_rng(part.stop).normal(0, 12, images.shape)
    return {"image": images.clip(0, 255).astype(np.float32), "labels": labels}


def accuracy(session: onnxruntime.InferenceSession, data: dict[str, NDArray[np.generic]]) -> float:
    return float(np.mean(session.run(None, {"image": data["image"]})[0].argmax(1) == data["labels"]))


def trained(folder: Path) -> onnxruntime.InferenceSession:
    state, options = np.load(folder / "trained.npz"), onnxruntime.SessionOptions()
    values = {key.removeprefix("infer:"): state[key] for key in state if key.startswith("infer:")}
    arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in values.values()]
    options.add_external_initializers(list(values), arrays)
    return onnxruntime.InferenceSession(folder / "infer.onnx", options)


@pytest.fixture(scope="module")
def compressed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resnet8") / "resnet8.w8a8.onnx"
    calibration, _ = chosen(shared_data / "cifar10jpeg_train10k.npz", CALIBRATED)
    onnxdfq.compress(shared_data / "models" / "resnet8_cifar10.onnx", output=path, calibration=calibration)
    return path


@pytest.mark.parametrize(("train", "rate"), [("head", 1e-2), ("biases", 1e-2), ("scales", 1e-2), ("all", 1e-4)])
def test_it_learns_a_drift(train: str, rate: float, compressed: Path, shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "package"
    onnxdfq.finetune_package(compressed, output=folder, train=train)  # type: ignore[arg-type]
    np.savez(folder / "data.npz", **drifted(shared_data / "cifar10jpeg_train10k.npz", TRAINED))  # type: ignore[arg-type]
    arguments = ["train.py", "data.npz", "3", "32", str(rate)]
    run = subprocess.run([sys.executable, "-I", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    losses = [float(line.rsplit(" ", 1)[1]) for line in run.stdout.splitlines()]
    held_back = drifted(shared_data / "cifar10jpeg_test.npz", TESTED)
    before = accuracy(onnxruntime.InferenceSession(folder / "infer.onnx"), held_back)
    after = accuracy(trained(folder), held_back)
    print(f"{train}: losses {losses}, accuracy {before:.3f} to {after:.3f}")
    assert losses[-1] < losses[0]
    assert after > before
    shutil.rmtree(folder)
