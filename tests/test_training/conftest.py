"""The sample network with a plan of few bits."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.model_file import load_model
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"
ORT = load_target("ort")


@pytest.fixture(scope="session")
def model() -> ir.Model:
    """Folded. Tests only read it."""
    model = load_model(DIGITS)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model


@pytest.fixture(scope="session")
def images(model: ir.Model) -> NDArray[np.float32]:
    shape = [int(size) for size in model.graph.inputs[0].shape or () if isinstance(size, int)]
    return np.random.default_rng(0).standard_normal((96, *shape)).astype(np.float32)


@pytest.fixture(scope="session", params=["power-of-two", "free"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def plan(model: ir.Model, images: NDArray[np.float32], scheme: str) -> QuantPlan:
    return Calibration(weight_bits=3, activation_bits=4, scheme=scheme).plan(model, images, ORT)  # type: ignore[arg-type]
