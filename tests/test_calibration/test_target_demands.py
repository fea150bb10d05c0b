"""What targets demand of the numbers: signs, symmetry, one scale for a tensor, powers of two, short biases."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.thresholds import weight_thresholds
from onnxdfq.errors import InputError
from onnxdfq.targets import load_target, target_names
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import QuantPlan, TensorQuant

from ..graphs import build

CNN = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=1> (x, w, b)
    r = Clip (a, low, high)
    c = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r, v, b)
    s = Add (c, r)
    t = Relu (s)
    g = GlobalAveragePool (t)
    f = Flatten (g)
    z = Gemm (f, u)
    y = Softmax (z)
}"""


def model() -> ir.Model:
    random = np.random.default_rng(0)
    arrays = {
        "w": random.normal(size=(8, 3, 3, 3)) / 5, "v": random.normal(size=(8, 1, 3, 3)) / 3,
        "b": random.normal(size=8),
        "u": random.normal(size=(8, 5)), "low": np.array(0.0), "high": np.array(1.5),
    }  # fmt: skip
    return build(CNN, **{name: array.astype("f4") for name, array in arrays.items()})


def decided(target: str, **settings: Any) -> QuantPlan:
    pixels = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype("f4")
    return Calibration(**settings).plan(model(), pixels, load_target(target))


@pytest.mark.parametrize("name", target_names())
def test_every_target_gets_what_it_demands(name: str) -> None:
    target, plan = load_target(name), decided(name)
    quants = [*plan.activations.values(), *plan.weights.values()]
    assert {"x", "r", "t", "g", "z", "y"} == set(plan.activations) - {"c"}
    assert ("c" in plan.activations) == (not target.fused_sums), "the depthwise Conv can compute the sum itself"
    unsigned = {key for key, quant in plan.activations.items() if not quant.signed}
    assert unsigned == (set() if target.unsigned_activations == "none" else {"r", "t", "g", "y"})
    assert {quant.axis for quant in plan.weights.values()} == ({0, 1} if target.per_channel_weights else {None})
    assert {quant.range for quant in plan.weights.values()} == {(-127 if target.narrow_weights else -128, 127)}
    assert (plan.activations["r"].clip is not None) == (target.small_ranges == "clip")
    assert all(is_power_of_two(quant.scale) for quant in quants)
    assert set(plan.bias_quants) == (set(plan.biases) if target.bias == "int8" else set())
    assert len(plan.biases) == 3


def test_a_known_range_is_met_on_a_signed_grid_too() -> None:
    assert decided("vitisai").activations["y"].range == (-128, 127)
    assert float(decided("vitisai").activations["y"].scale) == 2.0**-7
    assert float(decided("ort").activations["y"].scale) == 2.0**-8


def test_int32_biases_are_whole_steps_of_the_accumulator() -> None:
    for scheme in ("power-of-two", "free"):
        plan = decided("qnn", scheme=scheme)
        steps = plan.biases["Conv_a"] / (plan.activations["x"].scale * plan.weights["w"].scale)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-2)


def test_power_of_two_activations_leave_the_weights_free() -> None:
    plan = decided("ort", scheme="power-of-two-activations")
    assert all(is_power_of_two(quant.scale) for quant in plan.activations.values())
    assert not any(is_power_of_two(quant.scale) for quant in plan.weights.values())
    free, both = decided("ort", scheme="free"), decided("ort")
    for name, quant in plan.weights.items():
        np.testing.assert_array_equal(quant.threshold, free.weights[name].threshold)
    for name, quant in plan.activations.items():
        assert (quant.threshold, quant.clip) == (both.activations[name].threshold, both.activations[name].clip)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("qnn", {"weight_bits": 2}, r"target qnn \(Qualcomm.*takes weights of 4 or 8 bits, not of 2"),
        ("qnn", {"activation_bits": 32}, "takes activations of 8 or 16 bits, not of 32"),
        ("tensorrt", {"weight_bits": 4}, "takes weights of 8 bits, not of 4"),
        ("openvino", {"activation_bits": 16}, "activations of 2, 3, 4, 5, 6, 7, 8 or 32 bits, not of 16"),
        ("vitisai", {"scheme": "free"}, "vitisai takes power-of-two scales only, not --scheme free"),
        ("vitisai", {"scheme": "power-of-two-activations"}, "takes power-of-two scales only"),
        ("tensorrt", {"shift_negative": True}, "tensorrt has no grids without sign"),
    ],
)
def test_what_a_target_refuses_is_said_with_what_it_takes(target: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decided(target, **settings)


def test_a_symmetric_grid_clips_no_negative_weight() -> None:
    weight = np.array([[-1.0, 0.5, 0.3]], "f4")
    for narrow, reach in ((False, -1.0), (True, -1.0)):
        threshold = weight_thresholds(weight, 8, "free", axis=0, narrow=narrow)
        clip = (-127, 127) if narrow else None
        quant = TensorQuant(bits=8, signed=True, axis=0, threshold=threshold, clip=clip)
        assert quant.round_trip(weight)[0, 0] == pytest.approx(reach, abs=float(quant.scale[0]) / 2)
    assert threshold[0] > 1.0
