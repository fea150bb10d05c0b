"""`--method edfq` as users run it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.methods import Edfq, Gdfq
from onnxdfq.methods.method import FloatModel, Need, Run
from onnxdfq.recipe import Recipe

from ..graphs import DIGITS, Network

SHORT = Edfq(steps=4, warm_up=4, batch_size=16, latent=8, width=8, length=8, classifier_steps=4)


def compressed(method: Edfq, **settings: Any) -> onnxdfq.Result:
    common: dict[str, Any] = {"bits": "w3a4", "tuning": "none", "images": 16, "normalize": "none"}
    return onnxdfq.compress(onnxdfq.load(DIGITS / "digits.onnx"), method=method, **common | settings)


def test_from_the_model_to_a_plan() -> None:
    result = compressed(SHORT)
    assert result.method == "edfq" and len(result.metrics["loss_curve"]) == 5
    assert result.targets["ort"].plan.fingerprint == compressed(SHORT).targets["ort"].plan.fingerprint


def images(method: Edfq) -> NDArray[np.float32]:
    model = FloatModel(graph=onnxdfq.load(DIGITS / "digits.onnx"), source=DIGITS / "digits.onnx")
    found: NDArray[np.float32] = method.images(model, Run(recipe=Recipe())).fixed(8).pixels
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "without",
    [{"label_embeddings": False}, {"features_mixer": False}, {"flow_attention": False}, {"likeness": 0.0}],
)
def test_each_component_can_be_switched_off(without: dict[str, Any]) -> None:
    """The paper's Table 3: it changes the images."""
    assert (images(SHORT) != images(replace(SHORT, **without))).any()


def test_the_features_loss_is_of_the_quantized_network_alone() -> None:
    whole, part = compressed(SHORT), compressed(replace(SHORT, features=0.0))
    assert whole.images is not None and part.images is not None
    assert (whole.images.pixels == part.images.pixels).all()
    assert whole.metrics["loss_curve"][0][2] > part.metrics["loss_curve"][0][2]  # type: ignore[operator]


def test_a_transformer_without_batch_normalization() -> None:
    net = Network()
    rows = net.node("Reshape", net.conv("image", 1, 6), net.constant(np.array([0, 6, 64])))
    tokens = net.node("Transpose", rows, perm=[0, 2, 1])
    ones = net.constant(np.ones(6, np.float32))
    x = net.node("LayerNormalization", tokens, ones)
    x = net.node("Relu", net.node("MatMul", x, net.constant(np.random.default_rng(0).normal(size=(6, 6)).astype("f4"))))
    x = net.gemm(net.node("ReduceMean", x, net.constant(np.array([1])), keepdims=0), 6, 4)
    model = net.model({"image": ["n", 1, 8, 8]}, {x: ["n", 4]})
    assert Need.BATCH_NORM in Gdfq.needs and Need.BATCH_NORM not in Edfq.needs
    result = onnxdfq.compress(model, method=SHORT, bits="w4a8", tuning="none", images=16)
    assert result.images is not None and len(result.metrics["loss_curve"]) == 5
    assert "bn_distance" not in result.metrics
