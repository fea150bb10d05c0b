"""The sample that ships: small, with its BatchNormalization, and as good as its README says."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxdfq.images.dataset import load_dataset
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import load_model, main_input

FOLDER = Path(__file__).resolve().parents[1] / "samples" / "digits"


def test_the_sample_model() -> None:
    proto = onnx.load(FOLDER / "digits.onnx")
    assert [node.op_type for node in proto.graph.node].count("BatchNormalization") == 9
    assert main_input(load_model(FOLDER / "digits.onnx")).shape == (None, 1, 8, 8)


def test_the_sample_is_small() -> None:
    assert sum((FOLDER / name).stat().st_size for name in ("digits.onnx", "digits_test.npz")) < 1_000_000


def test_the_sample_accuracy() -> None:
    model = load_model(FOLDER / "digits.onnx")
    normalization = Normalization.parse(model.metadata_props["dfq.norm"])
    data = load_dataset(FOLDER / "digits_test.npz", spec=main_input(model), normalization=normalization, classes=10)
    session = ort.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])
    predicted = np.concatenate([session.run(None, {"image": batch})[0].argmax(1) for batch in data.batches(128)])
    assert len(data) == 599
    assert (predicted == data.labels).mean() >= 0.97
    assert set(np.unique(data.labels)) == set(range(10))
