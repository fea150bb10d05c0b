"""Shift-negative correction: the function stays, the error falls, the zero padding is shifted along."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration import Calibration
from onnxdfq.calibration.shift_negative import reader_of_shiftable
from onnxdfq.engine import TorchGraph
from onnxdfq.targets import load_target
from passes.insert_qdq import InsertQdq
from passes.quant_plan import QuantPlan
from passes.shift_negative import ShiftNegative

ORT = load_target("ort")
TEXT = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
    h = HardSwish (x)
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (h, w, b)
}"""


@pytest.fixture
def build() -> Callable[[], ir.Model]:
    def made() -> ir.Model:
        random, graph = np.random.default_rng(0), onnx.parser.parse_graph(TEXT)
        weights = {"w": random.normal(size=(4, 3, 3, 3)), "b": random.normal(size=4)}
        graph.initializer.extend(onnx.numpy_helper.from_array(a.astype("f4"), n) for n, a in weights.items())
        for node in graph.node:
            node.name = node.op_type
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))

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


def test_the_whole_plan_is_closer_than_without(build: Callable[[], ir.Model]) -> None:
    x = torch.from_numpy(pixels())
    (wanted,) = TorchGraph(build())(x)
    errors = []
    for shift_negative in (False, True):
        model = build()
        found = Calibration(activation_bits=4, shift_negative=shift_negative).plan(model, pixels(), ORT)
        # the layer's own output is not what is compared here
        activations = {name: quant for name, quant in found.activations.items() if name != "y"}
        ShiftNegative(found.shifts)(model)
        InsertQdq(
            QuantPlan(activations=activations, weights=found.weights, same_as=found.same_as, biases=found.biases), ORT
        )(model)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        errors.append(float((TorchGraph(model)(x)[0] - wanted).square().mean()))
    assert errors[1] < errors[0]


def test_nothing_is_shifted_unasked(build: Callable[[], ir.Model]) -> None:
    found = Calibration(activation_bits=4).plan(build(), pixels(), ORT)
    assert not found.shifts and found.activations["h"].signed


def test_a_padding_that_the_runtime_works_out_forbids_a_shift(build: Callable[[], ir.Model]) -> None:
    model = build()
    swish, convolution = model.graph
    assert reader_of_shiftable(swish.outputs[0]) is convolution
    convolution.attributes["auto_pad"] = ir.AttrString("auto_pad", "SAME_UPPER")
    assert reader_of_shiftable(swish.outputs[0]) is None
