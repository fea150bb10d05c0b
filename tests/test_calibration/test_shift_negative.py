"""Shift-negative correction: the function stays, the error falls, the zero padding is shifted along."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.shift_negative import reader_of_shiftable
from onnxdfq.engine import TorchGraph
from onnxdfq.recipe.choices import Scheme
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan
from passes.target.target import Target
from passes.write.insert_qdq import InsertQdq
from passes.write.shift_negative import ShiftNegative

from .. import graphs

ORT = load_target("ort")
FIXED = replace(ORT, zero_points="fixed")
TEXT = """(float[N,3,6,6] x) => (float[N,4,6,6] y) {
    h = HardSwish (x)
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (h, w, b)
}"""


@pytest.fixture
def build() -> Callable[[], ir.Model]:
    def made() -> ir.Model:
        random = np.random.default_rng(0)
        w, b = random.normal(size=(4, 3, 3, 3)), random.normal(size=4)
        return graphs.build(TEXT, w=w.astype("f4"), b=b.astype("f4"))

    return made


def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).uniform(-3, 3, size=(16, 3, 6, 6)).astype("f4")


def plan(model: ir.Model, **settings: Any) -> QuantPlan:
    return Calibration(activation_bits=4, shift_negative=True, **settings).plan(model, pixels(), ORT)


def test_shift_and_bias_cancel_borders_included(build: Callable[[], ir.Model]) -> None:
    model = build()
    found = plan(model, correct_bias=False)
    assert set(found.shifts) == {"h"} and not found.activations["h_shifted"].signed
    weights_only = QuantPlan(activations={}, weights=found.weights)
    shifted_only = QuantPlan(activations={}, weights=found.weights, biases=found.biases)
    x = torch.from_numpy(pixels())
    InsertQdq(weights_only, ORT)(model)
    (expected,) = TorchGraph(model)(x)
    shifted = build()
    ShiftNegative(found.shifts)(shifted)
    InsertQdq(shifted_only, ORT)(shifted)
    # biases are rounded to multiples of input scale times weight scale; nothing else may differ
    half_step = float((found.activations["h_shifted"].scale * found.weights["w"].scale).max()) / 2
    torch.testing.assert_close(TorchGraph(shifted)(x)[0], expected, rtol=0, atol=half_step + 1e-5)
    assert half_step < 0.01 * float(expected.std())


@pytest.mark.parametrize(
    "better",
    [
        pytest.param((True, FIXED), id="shifted"),
        pytest.param((False, ORT), id="by a zero point"),
    ],
)
def test_the_whole_plan_is_closer_than_without(better: tuple[bool, Target], build: Callable[[], ir.Model]) -> None:
    x = torch.from_numpy(pixels())
    (wanted,) = TorchGraph(build())(x)
    errors = []
    for shift_negative, target in ((False, FIXED), better):
        model = build()
        found = Calibration(activation_bits=4, shift_negative=shift_negative).plan(model, pixels(), target)
        # the layer's own output is not what is compared here
        activations = {name: quant for name, quant in found.activations.items() if name != "y"}
        ShiftNegative(found.shifts)(model)
        InsertQdq(
            QuantPlan(activations=activations, weights=found.weights, same_as=found.same_as, biases=found.biases),
            target,
        )(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        errors.append(float((TorchGraph(model)(x)[0] - wanted).square().mean()))
    assert errors[1] < errors[0]


def test_nothing_is_shifted_unasked(build: Callable[[], ir.Model]) -> None:
    found = Calibration(activation_bits=4).plan(build(), pixels(), FIXED)
    assert not found.shifts and found.activations["h"].signed


@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_point_for_the_tail(bits: int, scheme: Scheme, build: Callable[[], ir.Model], tmp_path: Path) -> None:
    model = build()
    found = Calibration(activation_bits=bits, scheme=scheme).plan(model, pixels(), ORT)
    quant = found.activations["h"]
    assert not found.shifts and 0 < quant.zero_point < 2 ** (bits - 2)
    assert -quant.zero_point * quant.scale <= -0.37  # HardSwish gives -0.375 at the least
    assert (2 - quant.zero_point) * quant.scale > -0.376
    InsertQdq(found, ORT)(model)
    assert model.graph.initializers["h_zero_point"].const_value is not None
    assert int(model.graph.initializers["h_zero_point"].const_value.numpy()) == quant.zero_point
    ir.save(model, tmp_path / "q.onnx")
    (engine,) = TorchGraph(model)(torch.from_numpy(pixels()))
    (runtime,) = onnxruntime.InferenceSession(tmp_path / "q.onnx").run(None, {"x": pixels()})
    step = float(found.activations["y"].scale)
    assert np.abs(engine.detach().numpy() - runtime).max() <= (0 if scheme == "power-of-two" else 1.01 * step)


SCALED = """(float[N,3,6,6] x) => (float[N,4,6,6] y) {{
    h = Relu (x)
    n = {scaling}
    y = Conv <kernel_shape=[1,1]> (n, w, b)
}}"""


@pytest.mark.parametrize(
    "scaling", ["Conv <group=3, kernel_shape=[1,1]> (h, s, t)", "BatchNormalization (h, v, t, z, v)"]
)
def test_a_normalization_behind_an_activation_function_has_a_tail(scaling: str) -> None:
    random = np.random.default_rng(0)
    numbers = {"s": np.ones((3, 1, 1, 1)), "t": np.full(3, -0.2), "v": np.ones(3), "z": np.zeros(3)}
    numbers |= {"w": random.normal(size=(4, 3, 1, 1)), "b": random.normal(size=4)}
    weights = {name: array.astype("f4") for name, array in numbers.items()}
    model = graphs.build(SCALED.format(scaling=scaling), **weights)
    quant = Calibration().plan(model, pixels(), ORT).activations["n"]
    assert not quant.signed and -quant.zero_point * quant.scale <= -0.2
    assert Calibration().plan(model, pixels(), FIXED).activations["n"].signed


def test_a_target_without_such_zero_points_refuses_the_plan(build: Callable[[], ir.Model]) -> None:
    found = Calibration().plan(build(), pixels(), ORT)
    with pytest.raises(ValueError, match="has no zero points for that"):
        InsertQdq(found, FIXED)(build())


def test_a_padding_that_the_runtime_works_out_forbids_a_shift(build: Callable[[], ir.Model]) -> None:
    model = build()
    swish, convolution = model.graph
    assert reader_of_shiftable(swish.outputs[0]) is convolution
    convolution.attributes["auto_pad"] = ir.AttrString("auto_pad", "SAME_UPPER")
    assert reader_of_shiftable(swish.outputs[0]) is None
