"""Small models that know the same images, in units, sizes and orders of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.generators.zoo import zoo_of_one
from onnxdfq.images.normalization import Normalization
from onnxdfq.synthesis.view import View
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.write.provenance import WriteProvenance

from ...graphs import Network, fit_batch_norms, natural_images

STANDARD, BYTES = "0.45/0.25", "0/0.00392156862745098"


def classifier(
    *,
    channels: int = 1,
    side: int = 8,
    classes: int = 5,
    batch: int | str = "batch",
    scale: float = 1.0,
    shift: float = 0.0,
) -> ir.Model:
    """conv-BN-relu-conv-BN-relu-pool-gemm; its statistics are of `scale * natural images + shift`."""
    net = Network()
    x = net.node("Relu", net.batch_norm(net.conv("image", channels, 8), 8))
    x = net.node("Relu", net.batch_norm(net.conv(x, 8, 12, strides=[2, 2]), 12))
    x = net.gemm(net.node("Flatten", net.node("GlobalAveragePool", x)), 12, classes)
    model = net.model({"image": [batch, channels, side, side]}, {x: [batch, classes]})
    count = batch if isinstance(batch, int) else 128
    fit_batch_norms(model, [(scale * natural_images(count, channels, side) + shift).astype(np.float32)])
    return model


def by_colour() -> ir.Model:
    """An image of three channels is of the class of its brightest, wherever that is. One BatchNormalization."""
    net = Network()
    pooled = net.node("Flatten", net.node("GlobalAveragePool", net.batch_norm("image", 3)))
    scores = net.node("Gemm", pooled, net.constant(10 * np.eye(3, dtype=np.float32)))
    model = net.model({"image": ["batch", 3, 8, 8]}, {scores: ["batch", 3]})
    fit_batch_norms(model, [natural_images(128, 3, 8)])
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """saved(name, model=None, fold=False, norm=None, **of classifier): the path of a model's file."""

    def save(
        name: str, *, model: ir.Model | None = None, fold: bool = False, norm: str | None = STANDARD, **given: int
    ) -> Path:
        model = classifier(**given) if model is None else model  # type: ignore[arg-type]
        if fold:
            FoldBatchNorm()(model)
        if norm is not None:
            WriteProvenance({"norm": norm})(model)
        path = tmp_path / f"{name}.onnx"
        ir.save(model, path)
        return path

    return save


def view_of(model: ir.Model, norm: str = STANDARD) -> View:
    """How a model at hand looks at images."""
    (view,) = zoo_of_one(model, Normalization.parse(norm), name="it", device="cpu").views([0])
    return view
