"""Moments without data on real networks."""

import numpy as np
import pytest

from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.moments.moments import activation_moments, batch_norm_moments


@pytest.mark.parametrize("name", ["resnet20_cifar10", pytest.param("fastestdet_coco", marks=pytest.mark.slow)])
def test_folding_keeps_what_is_known(shared_data, name):
    model = load_model(shared_data / "models" / f"{name}.onnx")
    Canonicalize()(model)
    before, seeds = activation_moments(model), batch_norm_moments(model)
    FoldBatchNorm()(model)
    after = activation_moments(model, seeds)
    values = {value.name for node in model.graph for value in node.outputs}
    assert len(before.keys() & values) > 0.6 * len(values)
    for value in before.keys() & values:
        np.testing.assert_allclose(after[value].mean, before[value].mean, rtol=1e-4, atol=1e-5, err_msg=value)
        np.testing.assert_allclose(after[value].std, before[value].std, rtol=1e-3, atol=1e-9, err_msg=value)


@pytest.mark.slow
def test_real_network_on_real_images(shared_data, run_on):
    """Every activation of a trained ResNet-20 behaves as told, up to the images that happen to be looked at."""
    model = load_model(shared_data / "models/resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    images = np.load(shared_data / "cifar10jpeg_train10k.npz")["images"][::100] / 255.0
    pixels = (images - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = activation_moments(model)
    (name,) = [value.name for value in model.graph.inputs]
    values = run_on(model, every_value=True, **{name: pixels.transpose(0, 3, 1, 2)})
    for node in model.graph:
        if node.op_type not in ("Conv", "BatchNormalization", "Relu", "Add"):
            continue
        value = node.outputs[0].name
        actual = np.moveaxis(values[value], 1, 0).reshape(values[value].shape[1], -1)
        unit = np.sqrt(np.square(actual.std(axis=1)).mean())
        assert np.sqrt(np.square(found[value].mean - actual.mean(axis=1)).mean()) < 0.35 * unit, value
        ratio = found[value].std / np.maximum(actual.std(axis=1), 0.05 * unit)
        assert 0.7 < np.median(ratio) < 1.4, value
