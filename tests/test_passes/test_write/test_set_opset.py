"""SetOpset and FixBatch: the same numbers at another opset, and a batch of one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from passes.write.fix_batch import FixBatch
from passes.write.set_opset import IR_VERSION, SetOpset

Array = np.ndarray[Any, Any]
Build = Callable[..., ir.Model]
RunOn = Callable[..., dict[str, Array]]

IMAGE = "(float[N,4,8,8] x) => (float[N,c,h,k] y)"
CASES: dict[str, tuple[str, dict[str, Array]]] = {
    "conv, relu, pool": (
        f"{IMAGE} {{ a = Conv <kernel_shape=[3,3]> (x, w)  b = Relu (a)  y = MaxPool <kernel_shape=[2,2]> (b) }}",
        {"w": np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype("f4")},
    ),
    "mean over the image": (
        "(float[N,4,8,8] x) => (float[N,4] y) { y = ReduceMean <keepdims=0> (x, axes) }",
        {"axes": np.array([2, 3])},
    ),
    "maximum of everything": ("(float[N,4,8,8] x) => (float[a,b,c,d] y) { y = ReduceMax (x) }", {}),
    "resize": (f'{IMAGE} {{ y = Resize <mode="linear"> (x, , s) }}', {"s": np.array([1, 1, 2, 2], "f4")}),
    "pad": (f"{IMAGE} {{ y = Pad (x, p) }}", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "average": (
        f"{IMAGE} {{ y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1, dilations=[1,1]> (x) }}",
        {},
    ),
    "two halves": (f"{IMAGE} {{ y, z = Split <axis=1, num_outputs=2> (x) }}", {}),
    "two parts": (f"{IMAGE} {{ y, z = Split <axis=1> (x, s) }}", {"s": np.array([1, 3])}),
    "shapes": (
        "(float[N,4,8,8] x) => (float[N,256] y) { s = Shape <end=1> (x)  t = Concat <axis=0> (s, r) "
        "y = Reshape (x, t) }",
        {"r": np.array([-1])},
    ),
    "gelu": (f"{IMAGE} {{ a = Gelu (x)  b = Relu (a)  c = Gelu (b)  y = Neg (c) }}", {}),
    "gelu by tanh": (f'{IMAGE} {{ a = Gelu <approximate="tanh"> (x)  y = Neg (a) }}', {}),
    "functions": (f"{IMAGE} {{ a = HardSwish (x)  b = LeakyRelu (a)  c = Sigmoid (b)  y = Clip (c) }}", {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("before", "after"), [(21, 17), (25, 17), (21, 20), (21, 25), (25, 21)])
def test_the_numbers_stay(case: str, before: int, after: int, build: Build, run_on: RunOn) -> None:
    text, weights = CASES[case]
    model = build(text, opset=before, **weights)
    x = np.random.default_rng(1).normal(size=(2, 4, 8, 8)).astype("f4")
    wanted = run_on(model, x=x)["y"]
    SetOpset(after)(model)
    assert (model.opset_imports[""], model.ir_version) == (after, IR_VERSION[after])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(run_on(model, x=x)["y"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{IMAGE} {{ y = Mish (x) }}", "Mish_y cannot be written for opset 17, where Mish does not exist"),
        (f'{IMAGE} {{ y = Resize <mode="linear", antialias=1> (x, , s) }}', "Resize has no attribute antialias"),
        (f"{IMAGE} {{ y, z, a = Split <axis=1, num_outputs=3> (x) }}", "Split has no attribute num_outputs"),
        (f"{IMAGE} {{ y = Pad (x, s, , s) }}", "Pad takes no more than 3 inputs"),
        (f"{IMAGE} {{ a = Shape (x)  y = ReduceMean (x, a) }}", "ReduceMean takes its axes as an attribute"),
        (f"{IMAGE} {{ y = AveragePool <kernel_shape=[2,2], dilations=[2,2]> (x) }}", "has no attribute dilations"),
    ],
)
def test_what_the_opset_lacks_is_named(text: str, reason: str) -> None:
    graph = onnx.parser.parse_graph("g " + text)
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    model = ir.from_proto(proto)
    with pytest.raises(ir.passes.PreconditionError, match=reason):
        SetOpset(17)(model)
    assert model.opset_imports[""] == 21


def test_opsets_out_of_reach() -> None:
    with pytest.raises(ValueError, match="opset 13 is asked for, and 17 to 25 can be written"):
        SetOpset(13)


def test_the_batch_becomes_one(build: Build, run_on: RunOn) -> None:
    model = build("(float[N,4,8,8] x) => (float[N,4] y) { g = GlobalAveragePool (x)  y = Flatten (g) }")
    assert FixBatch()(model).modified and not FixBatch()(model).modified
    shapes = [value.shape for value in (*model.graph.inputs, *[node.outputs[0] for node in model.graph])]
    assert [tuple(shape or ()) for shape in shapes] == [(1, 4, 8, 8), (1, 4, 1, 1), (1, 4)]
    x = np.random.default_rng(1).normal(size=(1, 4, 8, 8)).astype("f4")
    np.testing.assert_allclose(run_on(model, x=x)["y"], x.mean(axis=(2, 3)), atol=1e-6)
