"""Lint against what the rules say by hand. What the runtimes really do: tests/test_pipeline/test_lint_*.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target, target_names
from passes.graph.operators import ACTIVATIONS, JUDGED
from passes.lint.checks import CHECKS
from passes.lint.lint import INTEGER_CLIP, Finding, lint
from passes.lint.quantized_graph import WHOLE_FILE

Build = Callable[..., ir.Model]

CONV = """(float[1,2,4,4] x) => (float[1,3,4,4] y) {
    xq = QuantizeLinear (x, sx, zx)
    xd = DequantizeLinear (xq, sx, zx)
    wd = DequantizeLinear <axis=0> (w, sw, zw)
    bd = DequantizeLinear <axis=0> (b, sb)
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (xd, wd, bd)
    r = Relu (h)
    rq = QuantizeLinear (r, sy, zy)
    y = DequantizeLinear (rq, sy, zy)
}"""
FLOAT = """(float[1,2,4,4] x) => (float[1,3,4,4] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w)
    y = Sigmoid (h)
}"""


def parameters(
    *,
    act: str = "uint8",
    zero: int = 0,
    weight_scale: Any = (0.5, 0.25, 0.5),
    bias_type: str = "int32",
    factor: float = 1.0,
    out_scale: float = 0.125,
) -> dict[str, np.ndarray[Any, Any]]:
    """Of CONV: an input scale of 2**-4, a bias scale that is right when factor is 1."""
    scale = np.asarray(weight_scale, "f4")
    return {
        "sx": np.float32(2.0**-4),
        "zx": np.asarray(zero).astype(act),
        "w": np.ones((3, 2, 3, 3), np.int8),
        "sw": scale,
        "zw": np.zeros(scale.shape, np.int8),
        "b": np.ones(3, bias_type),
        "sb": (factor * 2.0**-4 * scale).astype("f4"),
        "sy": np.float32(out_scale),
        "zy": np.asarray(zero).astype(act),
    }


def judged(model: ir.Model, target: str = "ort") -> dict[str, Finding]:
    return {finding.op_type: finding for finding in lint(model, load_target(target))}


def test_a_quantized_layer_is_an_integer_one(build: Build) -> None:
    found = lint(build(CONV, **parameters()), load_target("ort"))
    assert found == (
        Finding(node="Conv_h", op_type="Conv", verdict="integer", reason="uint8 and int8 in", advice=""),
        Finding(
            node="Relu_r",
            op_type="Relu",
            verdict="integer",
            reason="the QuantizeLinear behind it saturates where it would",
            advice="",
        ),
    )


def test_a_zero_point_that_reaches_below_relu_is_told(build: Build) -> None:
    found = judged(build(CONV, **parameters(zero=128)))
    assert found["Conv"].verdict == found["Relu"].verdict == "float"
    assert found["Conv"].reason == (
        "the Relu behind it stays in float: the uint8 with zero point 128 that follows reaches below 0"
    )
    assert found["Conv"].advice == "quantize there without a sign, as uint8 with zero point 0"


def test_all_that_is_wrong_is_told_at_once(build: Build) -> None:
    found = judged(build(CONV, **parameters(zero=128, factor=3)))["Conv"]
    assert found.reason.startswith("the Relu behind it stays in float")
    assert found.reason.endswith("; the scale of its int32 bias is not input scale times weight scale")
    assert found.advice.count("; ") == 1


def test_a_float_model_is_float_throughout(build: Build) -> None:
    found = judged(build(FLOAT, w=np.ones((3, 2, 3, 3), "f4")))
    assert {finding.verdict for finding in found.values()} == {"float"}
    assert found["Conv"].reason == "it reads x in float: no DequantizeLinear stands before it"
    assert found["Conv"].advice == "put QuantizeLinear and DequantizeLinear on x"


def test_what_stays_float_within_a_function_needs_no_change(build: Build) -> None:
    norm = {name: np.ones(2, "f4") for name in "abcd"}
    for first, reason, advice in (
        ("Gelu", "ONNX Runtime, CPU has no integer BatchNormalization, nor Gelu, right before it", ""),
        ("MaxPool <kernel_shape=[1,1]>", "ONNX Runtime, CPU has no integer BatchNormalization", "fold it into"),
    ):
        graph = "(float[1,2,4,4] x) => (float[1,2,4,4] y) { h = %s (x) y = BatchNormalization (h, a, b, c, d) }"
        found = judged(build(graph % first, **norm))["BatchNormalization"]
        assert (found.verdict, found.reason) == ("float", reason)
        assert found.advice.startswith(advice) and bool(found.advice) == bool(advice)


def test_only_what_computes_on_floats_is_judged(build: Build) -> None:
    text = """(float[2,3] x) => (float[?,?] y, float[3] c) {
        s = Shape (x)
        t = Add (s, one)
        k = Constant <value = int64[2] {-1, 6}> ()
        xq = QuantizeLinear (x, sx, zx)
        xc = Clip (xq, low, high)
        xd = DequantizeLinear (xc, sx, zx)
        y = Reshape (xd, k)
        c = Mul (f, f)
    }"""
    weights = {
        "one": np.int64(1),
        "sx": np.float32(1),
        "zx": np.uint8(0),
        "low": np.uint8(0),
        "high": np.uint8(15),
        "f": np.ones(3, "f4"),
    }
    assert lint(build(text, **weights), load_target("ort")) == ()


def test_a_clip_that_no_kernel_has_is_refused(build: Build) -> None:
    text = """(float[2,3] x) => (float[2,3] y) {
        xq = QuantizeLinear (x, sx, zx)
        xc = Clip (xq, low, high)
        y = DequantizeLinear (xc, sx, zx)
    }"""
    bounds = {"low": np.uint16(0), "high": np.uint16(9)}
    (found,) = lint(build(text, sx=np.float32(1), zx=np.uint16(0), **bounds), load_target("ort"))
    assert (found.op_type, found.verdict) == ("Clip", "refused")
    assert found.advice.startswith("use the whole range")


def test_what_concerns_the_whole_file(build: Build) -> None:
    open_batch = build(FLOAT.replace("float[1,2,4,4] x", "float[N,2,4,4] x"), w=np.ones((3, 2, 3, 3), "f4"))
    first = lint(open_batch, load_target("qnn"))[0]
    assert (first.node, first.op_type, first.verdict) == ("", "", "refused")
    assert "its input x is open" in first.reason
    assert all(finding.node for finding in lint(open_batch, load_target("ort")))
    open_batch.graph.opset_imports[""] = 27
    first = lint(open_batch, load_target("ort"))[0]
    assert first.reason == "the file is of opset 27, and ONNX Runtime, CPU reads up to 26"


def test_tensorrt_is_symmetric_and_adds_the_bias_in_float(build: Build) -> None:
    found = judged(build(CONV, **parameters(act="int8")), "tensorrt")
    assert found["Conv"].verdict == "refused"
    assert found["Conv"].advice == "write the bias in float"
    found = judged(build(CONV, **parameters(act="int8", zero=-3)), "tensorrt")
    assert "a zero point is -3" in found["Conv"].reason
    found = judged(build(CONV, **parameters()), "tensorrt")
    assert found["QuantizeLinear"].verdict == "refused"
    assert found["QuantizeLinear"].reason == "NVIDIA TensorRT 10 knows no uint8 here"


@pytest.mark.parametrize(
    ("change", "verdict", "part"),
    [
        # positions: input 4, weight 1; output 3 → shift_cut 2; bias 5 → shift_bias 0
        ({}, "integer", "int8 and int8 in"),
        ({"out_scale": 2.0**6}, "integer", "int8 and int8 in"),  # shift_cut 11
        ({"out_scale": 2.0**12}, "float", "its shift_cut is 17, and the hardware shifts by 0 to 16"),
        ({"out_scale": 2.0**-6}, "float", "its shift_cut is -1"),
        ({"factor": 2.0**15}, "integer", "int8 and int8 in"),
        ({"factor": 2.0**16}, "float", "its shift_bias is 16, and the hardware shifts by -14 to 15"),
        ({"factor": 2.0**-15}, "float", "its shift_bias is -15"),
        ({"out_scale": 0.3}, "float", "a scale is 0.3, no power of two"),
        ({"weight_scale": (0.5, 0.5, 0.25)}, "float", "its weight has one scale per channel"),
        ({"bias_type": "int32"}, "float", "its bias is int32"),
    ],
)
def test_shifts_of_the_npu(build: Build, change: dict[str, Any], verdict: str, part: str) -> None:
    options = {"act": "int8", "bias_type": "int8", "weight_scale": 0.5, **change}
    model = build(
        CONV.replace("<axis=0> (b", "(b") if np.ndim(options["weight_scale"]) == 0 else CONV, **parameters(**options)
    )
    found = judged(model, "vitisai")["Conv"]
    assert found.verdict == verdict
    assert part in found.reason


@pytest.mark.parametrize(
    ("scales", "part"),
    [
        ((0, 0, 0), "int8 and int8 in"),
        ((0, 7, 0), "int8 and int8 in"),
        ((0, 8, 0), "its shift_read is 8, and the hardware shifts by 0 to 7"),
        ((0, 0, 8), "its shift_write is -8, and the hardware shifts by -7 to 25"),
        ((0, 0, -26), "its shift_write is 26"),
    ],
)
def test_shifts_of_a_sum_on_the_npu(build: Build, scales: tuple[int, int, int], part: str) -> None:
    text = """(float[1,4] x, float[1,4] z) => (float[1,4] y) {
        xq = QuantizeLinear (x, s0, o)
        xd = DequantizeLinear (xq, s0, o)
        zq = QuantizeLinear (z, s1, o)
        zd = DequantizeLinear (zq, s1, o)
        a = Add (xd, zd)
        yq = QuantizeLinear (a, s2, o)
        y = DequantizeLinear (yq, s2, o)
    }"""
    steps = {f"s{index}": np.float32(2.0**-position) for index, position in enumerate(scales)}
    assert part in judged(build(text, o=np.int8(0), **steps), "vitisai")["Add"].reason


QLINEAR = """(float[1,4] x, float[4,3] w) => (float[1,3] y) {
    xq = QuantizeLinear (x, s, z)
    wq = QuantizeLinear (w, s, z)
    yq = QLinearMatMul (xq, s, z, wq, s, z, s, z)
    y = DequantizeLinear (yq, s, z)
}"""


@pytest.mark.parametrize(
    ("target", "verdict"), [("ort", "integer"), ("tflite", "integer"), ("qnn", "refused"), ("vitisai", "float")]
)
def test_operators_on_integers(build: Build, target: str, verdict: str) -> None:
    model = build(QLINEAR, s=np.float32(1), z=np.uint8(0))
    assert judged(model, target)["QLinearMatMul"].verdict == verdict


def test_what_no_document_speaks_of_is_not_claimed(build: Build) -> None:
    found = judged(build(FLOAT, w=np.ones((3, 2, 3, 3), "f4")), "tensorrt")
    assert found["Sigmoid"].reason == "no source says that NVIDIA TensorRT 10 computes Sigmoid on integers"
    assert found["Conv"].verdict == "float"


@pytest.mark.parametrize("name", target_names())
def test_the_tables_use_names_that_exist(name: str) -> None:
    types = {"float", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16))}
    target = load_target(name)
    assert target.operators, "a target says what it makes of operators"
    for operator, rule in target.operators.items():
        known = JUDGED | {WHOLE_FILE, INTEGER_CLIP}
        assert operator in known or operator.startswith("QLinear") or rule.carries or rule.pulls
        assert set(rule.checks) <= set(CHECKS)
        assert set(rule.fuses) <= ACTIVATIONS
        assert set(rule.bias) <= {"none", "float", "int32", "int8"}
        assert rule.with_add in {"", *target.operators}
        for combination in (*rule.containers, *rule.refused):
            assert {entry for part in combination.split() for entry in part.split("|")} <= types


def test_no_check_is_idle() -> None:
    used = {check for name in target_names() for rule in load_target(name).operators.values() for check in rule.checks}
    assert used == set(CHECKS)
