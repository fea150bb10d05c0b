"""Packages of small QDQ models."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.model_file import save_model
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.write.write_for_target import WriteForTarget
from tests.graphs import natural_images, plain_network

SIDE = 8


@cache
def quantized(bits: int, scheme: str = "power-of-two", target: str = "ort", *, off: bool = False) -> ir.Model:
    """conv-relu-conv-relu-flatten-gemm of 8x8 images and 5 classes, as compress writes it; it is only read.

    off: whether biases lie off the grid of the accumulator, where compress puts them.
    """
    model = plain_network(side=SIDE)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    infer_shapes(model, strict=True)
    chosen = load_target(target)
    images = natural_images(32, 1, SIDE, seed=1)
    plan = Calibration(weight_bits=bits, activation_bits=bits, scheme=scheme).plan(model, images, chosen)  # type: ignore[arg-type]
    WriteForTarget(plan, chosen)(model)
    if off:
        _off_the_grid(model)
    return model


def _off_the_grid(model: ir.Model) -> None:
    """Moves biases a little: numbers of a grid add up to zero, where a Relu has its kink and rounding decides."""
    random = np.random.default_rng(4)
    for name, value in model.graph.initializers.items():
        if name.endswith("bias") and value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            array = value.const_value.numpy()
            value.const_value = ir.tensor(array + random.normal(0, 0.01, array.shape).astype(np.float32), name=name)


@pytest.fixture(scope="session")
def qdq_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 4 bits in types of eight, so that all forms of quantizers occur."""
    path = tmp_path_factory.mktemp("qdq") / "model.onnx"
    save_model(quantized(4).clone(), path)
    return path


@pytest.fixture(scope="session")
def data() -> dict[str, NDArray[np.generic]]:
    """64 images in five classes, told apart by their brightness."""
    labels = np.random.default_rng(2).integers(0, 5, 64)
    images = 0.4 * natural_images(64, 1, SIDE, seed=3) + labels[:, None, None, None].astype(np.float32) / 2 - 1
    return {"image": images.astype(np.float32), "labels": labels}
