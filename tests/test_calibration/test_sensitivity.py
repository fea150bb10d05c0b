"""Losses of single layers, against the whole network run with that one thing quantized."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.sensitivity import Sensitivity, measure_sensitivity
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant, shifted_name
from passes.quantize.points import find_quant_points

ORT = load_target("ort")
PIXELS = np.random.default_rng(1).normal(size=(7, 2, 4, 4)).astype("f4")


def measure(
    model: ir.Model, plans: dict[int, QuantPlan], activations: list[str], pixels: np.ndarray = PIXELS
) -> Sensitivity:
    return measure_sensitivity(
        model,
        pixels,
        weights={use.node: plans for use in find_quant_points(model, ORT).weights},
        activations=dict.fromkeys(activations, plans),
        batch_size=3,
        device="cpu",
        advance=lambda note: None,
    )


def plans_for(model: ir.Model, pixels: np.ndarray = PIXELS, **settings: bool) -> dict[int, QuantPlan]:
    calibration = Calibration(**settings)
    observed = calibration.observe(model, pixels, [ORT])
    return {
        bits: replace(calibration, weight_bits=bits, activation_bits=bits).decide(model, observed, ORT)
        for bits in (2, 4, 8)
    }


def whole(model: ir.Model, initializers: dict[str, np.ndarray], pixels: np.ndarray = PIXELS) -> list[np.ndarray]:
    """All outputs of the network with other numbers in some initializers."""
    graph = TorchGraph(model)
    with torch.no_grad():
        for name, array in initializers.items():
            graph.initializers[name].copy_(torch.from_numpy(np.array(array)))
        return [output.numpy().astype(np.float64) for output in graph(torch.from_numpy(pixels))]


def ratio(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    shares = [np.square(f - w).sum() / np.square(w).sum() for f, w in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


def test_one_weight_with_its_bias(two_layers: ir.Model) -> None:
    plans = plans_for(two_layers)
    found = measure(two_layers, plans, []).weights
    wanted = whole(two_layers, {})
    w = two_layers.graph.initializers["w"].const_value.numpy()
    v = two_layers.graph.initializers["v"].const_value.numpy()
    for bits, plan in plans.items():
        conv = whole(two_layers, {"w": plan.weights["w"].round_trip(w), "b": plan.biases["Conv_h"]})
        assert found["Conv_h"][bits] == pytest.approx(ratio(conv, wanted), rel=1e-4)
        # the Gemm has no bias in the float graph: what the plan adds is added behind it
        gemm = whole(two_layers, {"v": plan.weights["v"].round_trip(v)})[0] + plan.biases["Gemm_y"]
        assert found["Gemm_y"][bits] == pytest.approx(ratio([gemm], wanted), rel=1e-4)
        assert np.abs(plan.biases["Gemm_y"]).max() > 0, "else the test would not see the bias"
    assert found["Conv_h"][2] > 3 * found["Conv_h"][4] > 9 * found["Conv_h"][8]


def test_one_activation(two_layers: ir.Model) -> None:
    plans = plans_for(two_layers)
    found = measure(two_layers, plans, ["x", "r", "p"]).activations
    wanted = whole(two_layers, {})
    quantized = plans[4].activations["x"].round_trip(PIXELS).astype("f4")
    assert found["x"][4] == pytest.approx(ratio(whole(two_layers, {}, quantized), wanted), rel=1e-4)
    pooled = TorchGraph(two_layers, outputs=["p"])(torch.from_numpy(PIXELS))[0].detach().numpy()
    v = two_layers.graph.initializers["v"].const_value.numpy()
    for bits, plan in plans.items():
        by_hand = plan.activations["p"].round_trip(pooled)[:, :, 0, 0] @ v.T
        assert found["p"][bits] == pytest.approx(ratio([by_hand], wanted), rel=1e-4)
    assert list(found) == ["x", "r", "p"]


def test_a_shifted_activation(build: Callable[..., ir.Model]) -> None:
    text = """(float[N,2,4,4] x) => (float[N,5,4,4] y) {
        h = HardSwish (x)
        y = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=1> (h, w)
    }"""
    model = build(text, w=np.random.default_rng(0).normal(size=(5, 2, 1, 1)).astype("f4"))
    pixels = 4 * PIXELS
    plans = plans_for(model, pixels, shift_negative=True)
    assert plans[4].shifts["h"] > 0
    found = measure(model, {4: plans[4]}, ["h"], pixels).activations["h"][4]
    h = TorchGraph(model, outputs=["h"])(torch.from_numpy(pixels))[0].detach().numpy()
    shift = plans[4].shifts["h"]
    error = plans[4].activations[shifted_name("h")].round_trip(h + shift) - shift - h
    w = model.graph.initializers["w"].const_value.numpy()[:, :, 0, 0]
    noise = np.square(np.einsum("oi,nihw->nohw", w, error)).sum()
    assert found == pytest.approx(noise / np.square(whole(model, {}, pixels)[0]).sum(), rel=1e-3)


def test_several_outputs_weigh_the_same_and_heads_do_not_disturb_each_other(build: Callable[..., ir.Model]) -> None:
    """The first head ends before the second begins: at that point its output is there already."""
    text = """(float[N,2,4,4] x) => (float[N,3,4,4] a, float[N,3,4,4] z) {
        t = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=1> (x, w)
        a = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=1> (t, u)
        z = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=1> (t, v)
    }"""
    random = np.random.default_rng(0)
    weights = {"w": (2, 2), "u": (3, 2), "v": (3, 2)}
    arrays = {name: random.normal(size=(*shape, 1, 1)).astype("f4") for name, shape in weights.items()}
    arrays["v"] *= 1000
    model = build(text, **arrays)
    plans = plans_for(model)
    found = measure(model, {2: plans[2]}, []).weights
    wanted = whole(model, {})

    def alone(name: str, node: str) -> float:
        outputs = whole(model, {name: plans[2].weights[name].round_trip(arrays[name])})
        bias = plans[2].biases[node][:, None, None]
        return ratio([outputs[0] + bias * (name == "u"), outputs[1] + bias * (name == "v")], wanted)

    assert found["Conv_a"][2] == pytest.approx(alone("u", "Conv_a"), rel=1e-4)
    assert found["Conv_z"][2] == pytest.approx(alone("v", "Conv_z"), rel=1e-4)


def test_the_model_is_not_changed(two_layers: ir.Model) -> None:
    before = ir.to_proto(two_layers).SerializeToString()
    measure(two_layers, plans_for(two_layers), ["p"])
    assert ir.to_proto(two_layers).SerializeToString() == before


def test_an_integer_output_is_judged_by_what_it_is_chosen_from(build: Callable[..., ir.Model]) -> None:
    text = "(float[N,2] x) => (int64[N,1] y) { h = Gemm (x, w) r = Relu (h) y = ArgMax <axis=1> (r) }"
    model = build(text, w=np.eye(2, dtype="f4"))
    x = np.random.default_rng(0).uniform(0.1, 1, (64, 2)).astype("f4")
    quant = TensorQuant(bits=2, signed=False, threshold=np.float64(1.0))
    plan = QuantPlan(activations={"h": quant}, weights={})
    found = measure_sensitivity(
        model, x, weights={}, activations={"h": {2: plan}}, batch_size=64, device="cpu", advance=lambda _: None
    )
    rounded = np.clip(np.rint(x * 4), 0, 3) / 4
    expected = np.square(rounded - x).sum() / np.square(x).sum()
    assert found.activations["h"][2] == pytest.approx(expected, rel=1e-4)


def test_a_model_that_computes_no_float_is_refused(build: Callable[..., ir.Model]) -> None:
    model = build("(int64[N,2] x) => (int64[N,2] y) { y = Identity (x) }")
    with pytest.raises(InputError, match="no floating-point output"):
        measure(model, {}, [], np.zeros((2, 2), "i8"))
