"""The noise probe in ONNX Runtime, on the sample's network."""

from pathlib import Path

import numpy as np
import pytest

from onnxdfq.methods.dfmpc.probing import noise_covariances
from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.dfmpc.layer_pairs import has_weight
from passes.moments.moments import activation_moments

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"


def test_the_sample_network_as_noise_shows_it() -> None:
    model = load_model(SAMPLE)
    Canonicalize()(model)
    shown = noise_covariances(model, SAMPLE, seed=0)
    layers = [node for node in model.graph if has_weight(node)]
    assert set(shown) == {node.name for node in layers}
    moments = activation_moments(model)
    for node in layers[1:]:
        seen = moments[node.inputs[0].name]
        if seen.approximate:
            continue
        # channel by channel what batch normalization says, but for the border and for what is not normal
        found = shown[node.name or ""]
        variance = np.diagonal(found.matrix[0]).reshape(len(seen.mean), -1).max(axis=1)
        alive = seen.std > 1e-3
        assert np.median(variance[alive] / np.square(seen.std[alive])) == pytest.approx(1, abs=0.25), node.name
    again = noise_covariances(model, SAMPLE, seed=0)
    np.testing.assert_array_equal(shown[layers[2].name or ""].matrix, again[layers[2].name or ""].matrix)
    other = noise_covariances(model, SAMPLE, seed=1)
    assert not np.array_equal(shown[layers[2].name or ""].matrix, other[layers[2].name or ""].matrix)
