"""The probe network, its noise, and covariances against explicit loops over the patches."""

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.noise_probe import LARGEST_FILTER, filter_size, input_covariances, noise_fields, probe_model
from passes.moments.moments import Moments

RNG = np.random.default_rng(0)


def run(model: ir.Model, images: np.ndarray, *names: str) -> dict[str, np.ndarray]:
    copy = model.clone()
    if names:
        values = {value.name: value for node in copy.graph for value in node.outputs}
        copy.graph.outputs.clear()
        copy.graph.outputs.extend(values[name] for name in names)
    results = onnx.reference.ReferenceEvaluator(ir.to_proto(copy)).run(None, {"x": images})
    return {value.name: result for value, result in zip(copy.graph.outputs, results, strict=True)}


@pytest.mark.parametrize("kind", ["plain", "basic", "dense"])
def test_every_normalization_has_its_mean_and_deviation_on_noise(network, kind):
    model = network(kind)
    norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
    probe = probe_model(model)
    onnx.checker.check_model(ir.to_proto(probe))
    assert not any(node.op_type == "BatchNormalization" for node in probe.graph)
    inside = {value.name for node in probe.graph for value in node.outputs}
    tested = [node for node in norms if node.outputs[0].name in inside]
    assert len(tested) >= len(norms) - 1
    values = run(probe, 5 + 3 * noise_fields(16, 3, (8, 8), 0), *(node.outputs[0].name for node in tested))
    for node in tested:
        scale, bias = (parameter.const_value.numpy() for parameter in node.inputs[1:3])
        value = values[node.outputs[0].name]
        np.testing.assert_allclose(value.mean(axis=(0, 2, 3)), bias, atol=1e-3)
        np.testing.assert_allclose(value.std(axis=(0, 2, 3)), np.abs(scale), rtol=2e-3, atol=1e-4)


def test_the_probe_gives_what_layers_read_and_leaves_the_model_alone(network):
    model = network("basic")
    before = ir.to_proto(model).SerializeToString()
    probe = probe_model(model)
    assert ir.to_proto(model).SerializeToString() == before
    assert [value.name for value in probe.graph.outputs] == ["stem", "a", "flat"]
    assert "y" not in {value.name for node in probe.graph for value in node.outputs}


def test_noise_is_as_told_and_follows_its_seed():
    noise = noise_fields(200, 3, (32, 24), 7)
    assert noise.shape == (200, 3, 32, 24)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, noise_fields(200, 3, (32, 24), 7))
    assert not np.array_equal(noise, noise_fields(200, 3, (32, 24), 8))
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.05)
    colours = np.corrcoef(noise.transpose(1, 0, 2, 3).reshape(3, -1))
    np.testing.assert_allclose(colours[np.triu_indices(3, 1)], 0.9, atol=0.03)
    spectrum = np.square(np.abs(np.fft.fft(noise[:, 0], axis=1))).mean(axis=(0, 2))
    assert spectrum[1] / spectrum[4] > 4


@pytest.mark.parametrize(
    ("channels", "group", "kernel", "attributes"),
    [
        (4, 1, (3, 3), {"pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1]}),
        (4, 2, (3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        (4, 4, (1, 1), {}),
    ],
)
def test_covariances_against_a_loop_over_the_patches(monkeypatch, channels, group, kernel, attributes):
    monkeypatch.setattr("passes.dfmpc.noise_probe.POSITIONS_PER_INPUT", 10**6)  # all of them
    weight = ir.tensor(np.ones((8, channels // group, *kernel), np.float32), name="w")
    value, data = ir.val("w", const_value=weight), ir.val("x")
    layer = ir.node("Conv", [data, value], attributes | {"group": group}, name="layer")
    graph = ir.Graph([data], [layer.outputs[0]], nodes=[layer], initializers=[value], opset_imports={"": 21})
    maps = RNG.normal(size=(40, channels, 9, 8)).astype(np.float32)
    found = input_covariances(ir.Model(graph, ir_version=10), {"x": maps})["layer"]
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    steps = attributes.get("dilations", [1, 1])
    padded = np.pad(maps, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, steps, strict=True)]
    count = channels // group
    for g in range(group):
        patches = [
            padded[
                n,
                g * count : (g + 1) * count,
                row : row + spans[0] : steps[0],
                column : column + spans[1] : steps[1],
            ].reshape(-1)
            for n in range(len(maps))
            for row in range(0, padded.shape[2] - spans[0] + 1, strides[0])
            for column in range(0, padded.shape[3] - spans[1] + 1, strides[1])
        ]
        wanted = np.cov(np.array(patches, np.float64).T, bias=True).reshape(found.matrix.shape[1:])
        np.testing.assert_allclose(found.matrix[g], wanted, atol=2e-5)
        np.testing.assert_allclose(found.mean[g], np.mean(patches, axis=0), atol=1e-5)


def test_as_many_fields_are_taken_as_a_filter_needs(monkeypatch):
    weight = ir.tensor(np.ones((2, 2, 3, 3), np.float32), name="w")
    value, data = ir.val("w", const_value=weight), ir.val("x")
    layer = ir.node("Conv", [data, value], name="layer")
    graph = ir.Graph([data], [layer.outputs[0]], nodes=[layer], initializers=[value], opset_imports={"": 21})
    maps = RNG.normal(size=(40, 2, 10, 10)).astype(np.float32)
    model = ir.Model(graph, ir_version=10)
    monkeypatch.setattr("passes.dfmpc.noise_probe.POSITIONS_PER_INPUT", 10)  # 180 positions, so 2 fields of 100
    few = input_covariances(model, {"x": maps})["layer"]
    again = input_covariances(model, {"x": maps[:2]})["layer"]
    np.testing.assert_array_equal(few.matrix, again.matrix)


def test_layers_of_many_inputs_are_left_to_their_neighbours(network):
    model = network("plain")
    weight = np.ones((2, LARGEST_FILTER // 9 + 1, 3, 3), np.float32)
    model.graph.initializers["w_c_a"].const_value = ir.tensor(weight, name="w_c_a")
    layer = next(node for node in model.graph if node.name == "Conv_c_a")
    assert filter_size(layer) > LARGEST_FILTER
    maps = np.ones((2, weight.shape[1], 8, 8), np.float32)
    assert input_covariances(model, {"x": maps}) == {}


def test_a_probe_lowers_the_error_of_the_network(network):
    """On noise of another seed: against the integers that are nearest, and those that know of neighbours alone."""
    model = network("plain")
    known = {"x": Moments(mean=np.zeros(3), std=np.ones(3))}
    probe = probe_model(model)
    noise, other = noise_fields(64, 3, (8, 8), 0), noise_fields(64, 3, (8, 8), 1)
    shown = input_covariances(model, run(probe, noise) | {"x": noise})
    assert set(shown) == {"Conv_c_a", "Conv_c_b", "Conv_c_c", "Conv_c_d", "Gemm_y"}
    held = input_covariances(model, run(probe, other) | {"x": other})
    errors = {}
    for label, rounding, given in (
        ("nearest", "nearest", None),
        ("near", "covariance", None),
        ("all", "covariance", shown),
    ):
        settings = Compensation(low_bits=2, high_bits=6, rounding=rounding)
        plan = plan_compensation(model, settings, moments=known, covariances=given)
        errors[label] = 0.0
        for name in ("Conv_c_b", "Conv_c_d"):
            weight = model.graph.initializers[f"w_{name.removeprefix('Conv_')}"].const_value.numpy().reshape(8, -1)
            planned, matrix = plan.weights[name], held[name].matrix[0]
            whole = planned.integers.reshape(8, -1).astype(float)
            scale = np.einsum("od,de,oe->o", whole, matrix, weight) / np.einsum("od,de,oe->o", whole, matrix, whole)
            miss = whole * scale[:, None] - weight
            errors[label] += float(np.einsum("od,de,oe->", miss, matrix, miss))
    assert errors["all"] < 0.8 * min(errors["near"], errors["nearest"])


def test_a_normalization_of_unknown_rank_keeps_its_own_statistics(network):
    model = network("plain")
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    norm.inputs[0].shape = None
    kept = [node.name for node in probe_model(model).graph if node.op_type == "BatchNormalization"]
    assert kept == [norm.name]
