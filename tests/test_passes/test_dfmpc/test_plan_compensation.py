"""DF-MPC's numbers against a plain loop, its coefficient against brute force, its graph against what was planned."""

import math

import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.correlation import fields
from passes.dfmpc.layer_pairs import find_layer_pairs
from passes.dfmpc.plan import CompensateWeights, quantized_weights
from passes.dfmpc.recalibration import NormalizedLayer, coefficients, input_statistics
from passes.moments.moments import Moments, activation_moments

IMAGE = {"x": Moments(mean=np.zeros(3), std=np.ones(3))}


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}


def nodes(model: ir.Model) -> dict[str, ir.Node]:
    return {node.name: node for node in model.graph}


def run(model: ir.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """All values, by ONNX's own reference."""
    copy = model.clone()
    values = [value for node in copy.graph for value in node.outputs]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values)
    results = onnx.reference.ReferenceEvaluator(ir.to_proto(copy)).run(None, {"x": images})
    return {value.name: result for value, result in zip(values, results, strict=True)}


# ---- the paper's equations, one number after the other


def reference(model: ir.Model, settings: Compensation) -> tuple[dict, dict, dict, dict]:
    """(weights, norms, biases, coefficients) of a network of ungrouped layers."""
    pairs = find_layer_pairs(model, settings.assignment)
    moments, found = activation_moments(model, IMAGE), arrays(model)
    low = {layer.node.name for layer in pairs.low}
    legal = {layer.node.name for layer in pairs.legal}
    gains: dict[str, dict[int, float]] = {}
    weights, norms, biases, factors = {}, {}, {}, {}
    order = [node.name for node in model.graph]
    for layer in sorted((*pairs.low, *pairs.high), key=lambda layer: order.index(layer.node.name)):
        name, node = layer.node.name, layer.node
        weight = found[node.inputs[1].name]
        flat = [[float(number) for number in row.reshape(-1)] for row in weight]
        bits = settings.low_bits if name in low else settings.high_bits
        quantized = reference_weights(flat, bits)
        weights[name] = np.array(quantized).reshape(weight.shape)
        seen = moments[node.inputs[0].name]
        taps = len(flat[0]) // len(seen.mean)
        gain = gains.get(name, {})
        shifts, ratios = [], []
        for old, new in zip(flat, quantized, strict=True):
            shift, before, after = 0.0, 0.0, 0.0
            for position, (w, q) in enumerate(zip(old, new, strict=True)):
                channel = position // taps
                factor = gain.get(channel, 1.0)
                shift += (q * factor - w) * seen.mean[channel]
                before += w * w
                after += (q * factor) ** 2
            recalibrated = name in low or settings.high_layers
            shifts.append(shift if settings.mean and recalibrated else 0.0)
            ratios.append(math.sqrt(after / before) if settings.deviation == "norm" and recalibrated else 1.0)
        if not layer.norms and recalibrated:
            biases[name] = found[node.inputs[2].name].copy()
            for o in range(len(flat)):
                taken = sum(
                    q * gain.get(p // taps, 1.0) / ratios[o] * seen.mean[p // taps] for p, q in enumerate(quantized[o])
                )
                given = sum(w * seen.mean[p // taps] for p, w in enumerate(flat[o]))
                biases[name][o] -= taken - given
                weights[name][o] /= ratios[o]
        for norm in layer.norms:
            names = [value.name for value in norm.node.inputs[1:5]]
            numbers = norms.setdefault(norm.node.name, [found[one].copy() for one in names])
            epsilon = norm.node.attributes.get_float("epsilon", 1e-5)
            c_of_norm = []
            for o in range(len(flat)):
                at = norm.start + o
                gamma, beta, mean, deviation = (
                    numbers[0][at],
                    numbers[1][at],
                    numbers[2][at],
                    math.sqrt(numbers[3][at] + epsilon),
                )
                new_mean, new_deviation, c = mean + shifts[o], deviation * ratios[o], 1.0
                if settings.coefficients and name in legal:
                    above = below = 0.0
                    for w, q in zip(flat[o], quantized[o], strict=True):
                        above += (gamma * q / new_deviation) * (gamma * w / deviation)
                        below += (gamma * q / new_deviation) ** 2
                    after, before = beta - gamma * new_mean / new_deviation, beta - gamma * mean / deviation
                    c = max((above + settings.lambda1 * after * before) / (below + settings.lambda1 * after**2), 0.0)
                    c_of_norm.append(c)
                    for reader in norm.consumers:
                        gains.setdefault(reader.node.name, {})[reader.start + o] = c
                numbers[0][at], numbers[1][at] = c * gamma, c * beta
                numbers[2][at], numbers[3][at] = new_mean, new_deviation**2 - epsilon
            if c_of_norm:
                factors.setdefault(name, []).append(c_of_norm)
    return weights, norms, biases, factors


def reference_weights(rows: list[list[float]], bits: int) -> list[list[float]]:
    """Eq. (3), (4) and (6)."""
    numbers = [number for row in rows for number in row]
    if bits > 2:
        greatest, steps = max(map(abs, numbers)), 2**bits - 1
        return [[greatest * (2 / steps * round(steps * (w / (2 * greatest) + 0.5)) - 1) for w in row] for row in rows]
    threshold = 0.7 * sum(map(abs, numbers)) / len(numbers)
    kept = [abs(number) for number in numbers if abs(number) > threshold]
    scale = sum(kept) / len(kept)
    return [[math.copysign(scale, w) if abs(w) > threshold else 0.0 for w in row] for row in rows]


@pytest.mark.parametrize("kind", ["plain", "basic", "bottleneck", "dense"])
@pytest.mark.parametrize(
    "settings",
    [
        Compensation.paper(low_bits=2, high_bits=6),
        Compensation.paper(low_bits=3, high_bits=6),
        Compensation(
            low_bits=2, high_bits=4, assignment="first", rounding="paper", deviation="norm", coefficients=True
        ),
        Compensation(low_bits=2, high_bits=6, assignment="last", rounding="paper", deviation="norm"),
        Compensation(low_bits=2, high_bits=6, rounding="paper", deviation="keep", mean=False, high_layers=False),
    ],
    ids=["paper 2/6", "paper 3/6", "with next layer", "last", "direct"],
)
def test_against_a_plain_loop(network, kind, settings):
    model = network(kind)
    weights, norms, biases, factors = reference(model, settings)
    plan = plan_compensation(model, settings, moments=IMAGE)
    assert set(plan.weights) == set(weights)
    for name, wanted in weights.items():
        found = plan.weights[name]
        scale = found.scale.reshape(-1, *(1,) * (wanted.ndim - 1))
        np.testing.assert_allclose(found.integers * scale, wanted, rtol=1e-6, atol=1e-7, err_msg=name)
    for name, wanted in norms.items():
        found = plan.norms[name]
        for mine, number in zip((found.scale, found.bias, found.mean, found.var), wanted, strict=True):
            np.testing.assert_allclose(mine, number, rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(plan.coefficients) == set(factors)
    for name, wanted in factors.items():
        np.testing.assert_allclose(plan.coefficients[name], wanted, rtol=1e-6, err_msg=name)
    for name, wanted in biases.items():
        found = plan.biases.get(name, arrays(model)[nodes(model)[name].inputs[2].name])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_coefficient_is_where_brute_force_finds_the_least_loss():
    random = np.random.default_rng(1)
    for lambda1, lambda2 in ((0.5, 0.0), (2.0, 0.3), (0.0, 0.0)):
        channels, size = 6, 20
        old, new = (
            NormalizedLayer(
                rows=random.normal(size=(channels, size)) + 0.3,
                scale=random.normal(size=channels),
                bias=random.normal(size=channels),
                mean=random.normal(size=channels),
                deviation=random.uniform(0.5, 2, channels),
            )
            for _ in range(2)
        )
        found = coefficients(old, new, lambda1=lambda1, lambda2=lambda2)
        grid = np.linspace(0, 5, 50001)
        for j in range(channels):
            loss = lambda2 * grid**2
            for d in range(size):
                p = new.scale[j] * new.rows[j, d] / new.deviation[j]
                loss = loss + (grid * p - old.scale[j] * old.rows[j, d] / old.deviation[j]) ** 2
            theta = grid * (new.bias[j] - new.scale[j] * new.mean[j] / new.deviation[j])
            loss = loss + lambda1 * (theta - (old.bias[j] - old.scale[j] * old.mean[j] / old.deviation[j])) ** 2
            assert found[j] == pytest.approx(grid[np.argmin(loss)], abs=2e-4)


# ---- what it is good for


def settings(**given) -> Compensation:
    return Compensation(**{"low_bits": 2, "high_bits": 6} | given)


@pytest.mark.parametrize("rounding", ["paper", "nearest", "covariance"])
def test_mean_and_deviation_behind_a_low_layer_are_as_before(network, rounding):
    """On inputs that are as they are taken to be: normal, channels independent, pixels alike, and no border."""
    model = network("plain")
    layer = nodes(model)["Conv_c_b"]
    seen = activation_moments(model, IMAGE)[layer.inputs[0].name]
    running = arrays(model)["w_c_b"].sum(axis=(2, 3)) @ seen.mean  # what a trained network has there
    model.graph.initializers["n_b_m"].const_value = ir.tensor(running.astype(np.float32), name="n_b_m")
    plan = plan_compensation(model, settings(rounding=rounding), moments=IMAGE)
    weight = arrays(model)["w_c_b"].reshape(8, -1)
    planned = plan.weights["Conv_c_b"]
    new = (planned.integers * planned.scale.reshape(-1, 1, 1, 1)).reshape(8, -1)
    random = np.random.default_rng(0)
    blocks = input_statistics(layer, (8, 6, 3, 3), dict(fields(model, IMAGE))[layer.inputs[0].name]).blocks[0]
    roots = np.linalg.cholesky(blocks.astype(np.float64) + 1e-6 * np.eye(9))
    deviations = np.einsum("ikl,pil->pik", roots, random.normal(size=(40000, 6, 9)))
    inputs = np.repeat(seen.mean, 9) + deviations.reshape(-1, 54)
    norm = plan.norms["BatchNormalization_n_b"]
    old = {part: arrays(model)[f"n_b_{part}"] for part in "sbmv"}
    before = (inputs @ weight.T - old["m"]) / np.sqrt(old["v"] + 1e-5) * old["s"] + old["b"]
    after = (inputs @ new.T - norm.mean) / np.sqrt(norm.var + 1e-5) * norm.scale + norm.bias
    np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=0.03)
    np.testing.assert_allclose(after.std(axis=0), before.std(axis=0), rtol=0.03)


def test_the_graph_computes_what_was_planned(network):
    model = network("dense")
    images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    plan = plan_compensation(model, settings(), moments=IMAGE)
    before = arrays(model)
    assert CompensateWeights(plan)(model).modified
    after = arrays(model)
    for name, planned in plan.weights.items():
        initializer = nodes(model)[name].inputs[1].name
        scale = planned.scale.reshape(-1, *(1,) * (planned.integers.ndim - 1))
        np.testing.assert_allclose(after[initializer], planned.integers * scale, rtol=1e-6)
        assert not np.array_equal(after[initializer], before[initializer])
    np.testing.assert_allclose(after["n_end_m"], plan.norms["BatchNormalization_n_end"].mean, rtol=1e-6)
    np.testing.assert_allclose(after["n_end_v"], plan.norms["BatchNormalization_n_end"].var, rtol=1e-6)
    np.testing.assert_allclose(after["b_fc"], plan.biases["Gemm_y"], rtol=1e-6)
    assert np.isfinite(run(model, images)["y"]).all()


@pytest.mark.parametrize("kind", ["plain", "basic", "bottleneck", "inverted"])
@pytest.mark.parametrize("rounding", ["paper", "nearest"])
def test_folded_weights_are_the_integers_times_a_scale_per_channel(network, kind, rounding):
    model = network(kind)
    for name, value in model.graph.initializers.items():
        if name.startswith("n_") and name.endswith("_s"):  # a channel whose scale is negative, and one that is dead
            scale = value.const_value.numpy().copy()
            scale[:2] = [-0.7, 0.0]
            value.const_value = ir.tensor(scale, name=name)
    plan = plan_compensation(model, settings(rounding=rounding), moments=IMAGE)
    CompensateWeights(plan)(model)
    FoldBatchNorm()(model)
    written = quantized_weights(model, plan)
    assert len(written) == len(plan.weights)
    found = arrays(model)
    for name, weight in written.items():
        quant, folded = weight.quant, found[name]
        low, high = quant.range
        assert weight.integers.dtype == np.int8
        assert (weight.integers >= low).all()
        assert (weight.integers <= high).all()
        scale = quant.scale.reshape([-1 if axis == quant.axis else 1 for axis in range(folded.ndim)])
        np.testing.assert_allclose(weight.integers * scale, folded, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(quant.integers(folded), weight.integers)
    low_layer = next(layer.node.name for layer in find_layer_pairs(network(kind), "first").low)
    assert set(np.unique(written[f"w_{low_layer.removeprefix('Conv_')}"].integers)) == {-1, 0, 1}


def test_what_was_folded_into_inputs_is_refused(network):
    model = network("plain")
    plan = plan_compensation(model, settings(), moments=IMAGE)
    CompensateWeights(plan)(model)
    value = model.graph.initializers["w_c_b"]
    value.const_value = ir.tensor(
        value.const_value.numpy() * np.arange(1, 7, dtype=np.float32)[:, None, None], name="w_c_b"
    )
    with pytest.raises(ValueError, match="Conv 'Conv_c_b' is not its planned integers times a scale"):
        quantized_weights(model, plan)


def test_a_filter_that_becomes_all_zero_keeps_its_expectation(network):
    model = network("basic")
    value = model.graph.initializers["w_c_a"]
    weight = value.const_value.numpy().copy()
    weight[2] *= 1e-3  # below the threshold of the layer
    value.const_value = ir.tensor(weight, name="w_c_a")
    plan = plan_compensation(
        model, settings(rounding="paper", assignment="first", coefficients=True, high_layers=False), moments=IMAGE
    )
    assert not plan.weights["Conv_c_a"].integers[2].any()
    norm = plan.norms["BatchNormalization_n_a"]
    assert all(np.isfinite(part).all() for part in (norm.scale, norm.bias, norm.mean, norm.var))
    assert (norm.var >= 0).all()
    CompensateWeights(plan)(model)
    images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    assert np.isfinite(run(model, images)["y"]).all()


@pytest.mark.parametrize("tiny", [0.0, 1e-18, 1e-30])
def test_channels_that_died_in_training_do_no_harm(network, tiny):
    model = network("bottleneck")
    images = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    for name in ("n_stem_s", "n_a_s", "n_b_s", "n_a_v", "n_b_v", "n_c_v"):
        value = model.graph.initializers[name]
        numbers = value.const_value.numpy().copy()
        numbers[:2] = tiny
        value.const_value = ir.tensor(numbers, name=name)
    for name in ("w_c_a", "w_c_b", "w_c_c"):
        value = model.graph.initializers[name]
        numbers = value.const_value.numpy().copy()
        numbers[1] = tiny
        value.const_value = ir.tensor(numbers, name=name)
    for given in (settings(), settings(assignment="last"), Compensation.paper(low_bits=2, high_bits=6)):
        edited = model.clone()
        with np.errstate(all="raise", under="ignore"):
            plan = plan_compensation(edited, given, moments=IMAGE)
        CompensateWeights(plan)(edited)
        assert np.isfinite(run(edited, images)["y"]).all()
        ratio = np.sqrt(plan.norms["BatchNormalization_n_b"].var[2:] / arrays(model)["n_b_v"][2:])
        assert (ratio > 0.3).all()
        assert (ratio < 3).all()


def test_a_deviation_below_epsilon_is_made_up_for_by_the_scale(network):
    model = network("basic")
    for name in ("n_a_v",):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.full(6, 1e-9, np.float32), name=name)
    settings_ = settings(rounding="paper", assignment="first", deviation="norm")
    norm = plan_compensation(model, settings_, moments=IMAGE).norms["BatchNormalization_n_a"]
    weight = arrays(model)["w_c_a"].reshape(6, -1)
    planned = plan_compensation(model, settings_, moments=IMAGE).weights["Conv_c_a"]
    new = (planned.integers * planned.scale.reshape(-1, 1, 1, 1)).reshape(6, -1)
    ratio = np.linalg.norm(new, axis=1) / np.linalg.norm(weight, axis=1)
    wanted = arrays(model)["n_a_s"] / (np.sqrt(1e-9 + 1e-5) * ratio)
    np.testing.assert_allclose(norm.scale / np.sqrt(norm.var + 1e-5), wanted, rtol=1e-6)
    assert (norm.var >= 0).all()


def test_a_folded_model_needs_moments_and_then_corrects_its_biases(network):
    model = network("basic")
    seen = activation_moments(model, IMAGE)
    FoldBatchNorm()(model)
    with pytest.raises(ValueError, match="has no BatchNormalization that DF-MPC could recalibrate"):
        plan_compensation(model, settings())
    known = IMAGE | {name: seen[name] for name in ("stem", "a", "b")}
    plan = plan_compensation(model, settings(assignment="last"), moments=known)
    assert plan.weights["Conv_c_b"].bits == 2
    folded = arrays(model)
    planned = plan.weights["Conv_c_b"]
    change = planned.integers * planned.scale.reshape(-1, 1, 1, 1) - folded["w_c_b"]
    wanted = folded["Conv_c_b.bias"] - change.sum(axis=(2, 3)) @ seen["a"].mean
    np.testing.assert_allclose(plan.biases["Conv_c_b"], wanted, rtol=1e-5, atol=1e-6)
