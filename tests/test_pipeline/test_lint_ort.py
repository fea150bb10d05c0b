"""The rules of the target ort against ONNX Runtime itself: what it makes of small graphs, node by node."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxdfq.targets import load_target
from passes.lint.lint import Finding, lint

from . import sketch
from .ort_graph import RUNS_AS, load, run, verdicts
from .sketch import binary, blocked, conv, matmul, moved, of_channels, qlinear, residual, unary

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
GEMM = "Gemm"
FUNCTIONS = ("LeakyRelu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid", "Swish", "Tanh")


def cases() -> Iterator[tuple[str, Callable[[], onnx.ModelProto]]]:
    """Each graph lies on one side of one rule."""
    yield "conv", lambda: conv()
    for opset in (10, 11, 12):
        yield f"conv opset {opset}", lambda opset=opset: conv(opset=opset, axis=None, bias="none")
    for opset in (13, 17, 19, 22, 23, 24, 25, 26, 27):
        yield f"conv opset {opset}", lambda opset=opset: conv(opset=opset)
    for name, options in {
        "int8": {"act": "int8"},
        "int8 to uint8": {"act": "int8", "out": "uint8", "out_zero": 128},
        "uint8 to int8": {"out": "int8"},
        "uint8 around 128": {"zero": 128},
        "int8, uint8 weight": {"act": "int8", "weight": "uint8", "weight_zero": 128},
        "uint8 weight": {"weight": "uint8", "weight_zero": 128},
        "weight around 5": {"weight_zero": 5},
        "weight per tensor": {"axis": None},
        "weight axis 1": {"axis": 1},
        "weight axis 1, no bias": {"axis": 1, "bias": "none"},
        "weight axis 2, no bias": {"axis": 2, "bias": "none"},
        "depthwise": {"group": 8},
        "transposed": {"op": "ConvTranspose", "axis": 1},
        "no bias": {"bias": "none"},
        "int32 bias": {"bias": "int32"},
        "int32 bias per tensor": {"bias": "int32", "axis": None},
        "int32 bias, scale off by 0.9 %": {"bias": "int32", "factor": 1.009},
        "int32 bias, scale off by 2 %": {"bias": "int32", "factor": 1.02},
        "int32 bias, scale half": {"bias": "int32", "factor": 0.5},
        "int8 bias": {"bias": "int8"},
        "relu": {"function": "Relu"},
        "relu around 128": {"function": "Relu", "out_zero": 128},
        "relu around 3": {"function": "Relu", "out_zero": 3},
        "relu int8": {"function": "Relu", "act": "int8"},
        "relu int8 from -128": {"function": "Relu", "act": "int8", "out_zero": -128},
        "relu6 in steps of 2**-5": {"function": (0, 6), "out_scale": 2.0**-5},
        "relu6 in steps of 2**-6": {"function": (0, 6), "out_scale": 2.0**-6},
        "relu6 in steps of 6/255": {"function": (0, 6), "out_scale": 6 / 255},
        "relu6 in steps a little above": {"function": (0, 6), "out_scale": 6 / 254.6},
        "relu6 in steps above": {"function": (0, 6), "out_scale": 6 / 254.4},
        "relu6 in steps a little above, int4 weight": {
            "function": (0, 6),
            "out_scale": 6 / 254.6,
            "weight": "int4",
        },
        "relu, int4 weight": {"function": "Relu", "weight": "int4"},
        "relu6, clip of integers": {"function": (0, 6), "out_scale": 2.0**-5, "out_clip": (0, 192)},
        "clip without an upper bound": {"function": (0,)},
        "4 bits in, clipped": {"clip": (0, 15)},
        "4 bits out, clipped": {"out_clip": (0, 15)},
        "4 bits in int8, clipped": {"act": "int8", "clip": (-8, 7)},
        "4 bits out int8, clipped": {"act": "int8", "out_clip": (-8, 7)},
        "float output": {"end": "float"},
        "read twice": {"end": "read twice"},
        "quantized twice": {"end": "quantized twice"},
        "an output too": {"end": "an output too"},
        "integers": {"end": "integers"},
        "float weight": {"weight": "float"},
        "float weight, no bias": {"weight": "float", "bias": "none"},
        "float weight, float output": {"weight": "float", "end": "float"},
        "int4 weight": {"weight": "int4"},
        "int16 weight": {"weight": "int16"},
        "int2 weight": {"weight": "int2"},
        "int2 weight, float output": {"weight": "int2", "end": "float"},
        "uint2 weight": {"weight": "uint2"},
        "uint4": {"act": "uint4"},
        "uint4 to uint8": {"act": "uint4", "out": "uint8"},
        "uint4, float output": {"act": "uint4", "end": "float"},
        "uint4, int4 weight": {"act": "uint4", "weight": "int4"},
        "int4": {"act": "int4"},
        "uint2": {"act": "uint2"},
        "int2, int2 weight": {"act": "int2", "weight": "int2"},
        "int16": {"act": "int16"},
        "uint16": {"act": "uint16", "zero": 32768},
    }.items():
        yield f"conv {name}", lambda options=options: conv(**options)
    for function in FUNCTIONS:
        for act, end in (("uint8", "quantized"), ("int8", "quantized"), ("uint8", "float")):
            yield (
                f"conv {function}, {act}, {end}",
                lambda function=function, act=act, end=end: conv(act=act, function=function, end=end, opset=24),
            )
        yield f"Gemm {function}", lambda function=function: matmul(GEMM, function=function, end="float", opset=24)
    for dtype in ("uint8", "int8"):
        yield f"residual {dtype}", lambda dtype=dtype: residual(dtype=dtype)
        yield f"residual {dtype}, one branch", lambda dtype=dtype: residual(dtype=dtype, branch=False)
    yield "residual relu", lambda: residual(function=True)
    yield "residual relu around 128", lambda: residual(function=True, zero=128)
    for op, more in (("Add", {}), ("Mul", {}), ("Concat", {"axis": 1}), ("Sub", {}), ("Div", {})):
        for name, options in {
            "uint8": {},
            "int8": {"first": "int8", "second": "int8", "out": "int8"},
            "two zero points": {"zeros": (128, 0, 0)},
            "two scales": {"scale": 2.0**-3},
            "int8 second": {"second": "int8"},
            "int8 out": {"out": "int8"},
            "float second": {"kind": "float"},
            "itself": {"kind": "same"},
            "itself int8": {"kind": "same", "first": "int8", "out": "int8"},
            "constant": {"kind": "constant"},
            "constant int8": {"kind": "constant", "second": "int8"},
            "float constant": {"kind": "float constant"},
            "relu": {"function": True},
            "relu around 128": {"function": True, "zeros": (0, 0, 128)},
            "float output": {"end": "float"},
            "uint16": {"first": "uint16", "second": "uint16", "out": "uint16"},
            "uint4": {"first": "uint4", "second": "uint4", "out": "uint4"},
            "uint4 second": {"second": "uint4"},
            "uint2": {"first": "uint2", "second": "uint2", "out": "uint2"},
        }.items():
            yield f"{op} {name}", lambda op=op, options=options, more=more: binary(op, **options, **more)
    for name, options in {
        "": {},
        "another scale": {"out_scale": 2.0**-3},
        "int8": {"act": "int8"},
        "uint8 to int8": {"out": "int8"},
        "float output": {"end": "float"},
        "float input": {"act": "float"},
        "float": {"act": "float", "end": "float"},
        "relu": {"function": True},
        "uint16": {"act": "uint16"},
        "uint4": {"act": "uint4"},
        "uint2": {"act": "uint2"},
        "opset 11": {"opset": 11},
        "opset 12": {"opset": 12},
        "opset 22": {"opset": 22},
        "clipped before": {"clip": (0, 15)},
        "clipped after": {"out_clip": (0, 15)},
    }.items():
        yield f"MaxPool {name}", lambda options=options: unary("MaxPool", **POOL, **options)
    for op, more in (
        ("AveragePool", POOL),
        ("GlobalAveragePool", {}),
        ("GlobalMaxPool", {}),
        ("LeakyRelu", {}),
        ("Sigmoid", {}),
        ("Softmax", {}),
        ("Relu", {}),
        ("Tanh", {}),
    ):
        for name, options in {
            "": {},
            "another scale": {"out_scale": 2.0**-3},
            "int8": {"act": "int8"},
            "int8 to uint8": {"act": "int8", "out": "uint8"},
            "clipped int8": {"act": "int8", "clip": (-8, 7), "out_clip": (-8, 7)},
            "around 128": {"zero": 128},
            "float output": {"end": "float"},
            "relu": {"function": True},
            "uint16": {"act": "uint16"},
            "uint4": {"act": "uint4"},
            "uint2": {"act": "uint2"},
            "opset 25": {"opset": 25},
        }.items():
            yield f"{op} {name}", lambda op=op, options=options, more=more: unary(op, **more, **options)
    for op in ("HardSigmoid", "HardSwish", "Elu", "Gelu", "Mish", "Selu", "Celu", "Softplus", "Erf", "ThresholdedRelu"):
        yield op, lambda op=op: unary(op)
    bounds = (np.float32(0), np.float32(6))
    yield "Clip within", lambda: unary("Clip", more=bounds)
    yield "Clip beyond", lambda: unary("Clip", more=(np.float32(0), np.float32(100)))
    yield "Clip beyond uint16", lambda: unary("Clip", more=(np.float32(0), np.float32(1e5)), act="uint16")
    yield "Clip beyond uint4", lambda: unary("Clip", more=(np.float32(0), np.float32(100)), act="uint4")
    yield "Clip within uint4", lambda: unary("Clip", more=bounds, act="uint4", out_scale=1.0)
    yield "Clip to uint2", lambda: unary("Clip", more=bounds, act="uint2")
    yield "conv clip to uint4", lambda: conv(function=(0, 6), out="uint4", bias="none")
    yield "Clip of the input", lambda: unary("Clip", more=(np.float32(0), np.float32(100)), act="float")
    yield "Clip without bounds", lambda: unary("Clip")
    yield "PRelu", lambda: unary("PRelu", more=(np.full((8, 1, 1), 0.1, "f4"),))
    yield "ReduceMean", lambda: unary("ReduceMean", more=(np.array([2, 3]),))
    yield "ReduceMax", lambda: unary("ReduceMax", more=(np.array([2, 3]),))
    yield "uint4 clipped", lambda: unary("Tanh", act="uint4", clip=(0, 7))
    yield "uint16 clipped", lambda: unary("Tanh", act="uint16", clip=(0, 4095))
    for op in ("MatMul", GEMM):
        for name, options in {
            "": {},
            "int8": {"act": "int8"},
            "uint8 weight": {"weight": "uint8", "weight_zero": 128},
            "float output": {"end": "float"},
            "int8, float output": {"act": "int8", "end": "float"},
            "per tensor": {"axis": None},
            "axis 0": {"axis": 0},
            "relu": {"function": True},
            "relu around 128": {"function": True, "out_zero": 128},
            "relu, float output": {"function": True, "end": "float"},
            "computed": {"computed": True, "weight": "uint8"},
            "computed int8": {"computed": True, "act": "int8"},
            "computed uint8 int8": {"computed": True},
            "uint8 to int8": {"out": "int8"},
            "float weight": {"weight": "float"},
            "int4 weight": {"weight": "int4"},
            "int4 weight, float output": {"weight": "int4", "end": "float"},
            "only int4 weight": {"act": "float", "weight": "int4", "end": "float"},
            "only int8 weight": {"act": "float", "end": "float"},
            "only int2 weight": {"act": "float", "weight": "int2", "end": "float"},
            "int2 weight": {"weight": "int2"},
            "int2 weight, float output": {"weight": "int2", "end": "float"},
            "uint4": {"act": "uint4"},
            "uint2": {"act": "uint2"},
            "uint2, float output": {"act": "uint2", "end": "float"},
            "uint16": {"act": "uint16"},
        }.items():
            yield f"{op} {name}", lambda op=op, options=options: matmul(op, **options)
    for name, options in {
        "float bias": {"bias": "float"},
        "float bias, float output": {"bias": "float", "end": "float"},
        "int32 bias": {"bias": "int32"},
        "int32 bias, float output": {"bias": "int32", "end": "float"},
        "int32 bias, scale 32 times": {"bias": "int32", "factor": 32},
        "matrix bias": {"bias": "matrix"},
        "transposed": {"transB": 1, "axis": 0, "bias": "float"},
        "transposed, axis 1": {"transB": 1, "axis": 1},
        "alpha": {"alpha": 0.5},
        "beta": {"beta": 0.5, "bias": "int32"},
        "beta, float bias": {"beta": 0.5, "bias": "float"},
        "float weight and bias": {"weight": "float", "bias": "float"},
    }.items():
        yield f"Gemm {name}", lambda options=options: matmul(GEMM, **options)
    for rows in ((4,), (2, 4)):
        for name, options in {
            "": {},
            "first": {"add": "first"},
            "quantized": {"add": "quantized"},
            "a number": {"add": "number"},
            "float output": {"end": "float"},
            "relu": {"function": True},
            "relu, float output": {"function": True, "end": "float"},
            "int8": {"act": "int8"},
            "int8, opset 19": {"act": "int8", "opset": 19},
            "axis 0": {"axis": 0},
            "float": {"act": "float", "weight": "float", "end": "float"},
            "int4": {"weight": "int4"},
            "computed": {"computed": True, "weight": "uint8"},
        }.items():
            options = {"add": "row", "rows": rows, **options}
            yield f"MatMul + Add {name} {rows}", lambda options=options: matmul(**options)
    corners = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    for op, more, attributes in (
        ("MaxPool", (), POOL),
        ("Reshape", (np.array([0, -1]),), {}),
        ("Transpose", (), {"perm": [0, 2, 3, 1]}),
        ("Slice", (np.array([0]), np.array([4]), np.array([1])), {}),
        ("Flatten", (), {}),
        ("DepthToSpace", (), {"blocksize": 2}),
        ("Pad", (corners,), {}),
        ("Resize", ("", np.array([1, 1, 2, 2], "f4")), {"mode": "nearest"}),
    ):
        for dtype in ("uint8", "int8"):
            for opset in (13, 21, 23):
                yield (
                    f"{op} then Sigmoid, {dtype}, opset {opset}",
                    lambda op=op, more=more, dtype=dtype, opset=opset, attributes=attributes: moved(
                        op, *more, dtype=dtype, opset=opset, **attributes
                    ),
                )
            yield (
                f"Sigmoid then {op}, {dtype}",
                lambda op=op, more=more, dtype=dtype, attributes=attributes: moved(
                    op, *more, dtype=dtype, forward=False, **attributes
                ),
            )
    for op, more in (
        ("Conv", {"kernel_shape": [3, 3]}),
        ("Add", {}),
        ("Mul", {}),
        ("Sigmoid", {}),
        ("AveragePool", POOL),
        ("GlobalAveragePool", {}),
        ("MaxPool", POOL),
    ):
        for inward in (True, False):
            yield (
                f"{op} per channel {'in' if inward else 'out'}",
                lambda op=op, inward=inward, more=more: of_channels(op, inward=inward, **more),
            )
    for op in ("MatMul", GEMM):
        for dtype in ("int8", "int4"):
            for end in ("quantized", "float"):
                for act in (True, False):
                    yield (
                        f"{op} blocks {dtype} {end} {'quantized' if act else 'float'}",
                        lambda op=op, dtype=dtype, end=end, act=act: blocked(op, dtype=dtype, end=end, act=act),
                    )
    for op in ("QLinearConv", "QLinearMatMul"):
        for act in ("uint8", "int8"):
            for per_channel in (False, True):
                yield (
                    f"{op} {act} {'per channel' if per_channel else ''}",
                    lambda op=op, act=act, per_channel=per_channel: qlinear(op, act=act, per_channel=per_channel),
                )
    for readers in (0, 2):
        yield (
            f"Reshape, {readers} readers, int8",
            lambda readers=readers: moved("Reshape", np.array([0, -1]), dtype="int8", readers=readers),
        )


CASES = {" ".join(name.split()): build for name, build in cases()}


def judged(model: onnx.ModelProto) -> dict[str, Finding]:
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    return {finding.node: finding for finding in lint(inferred, load_target("ort"))}


# What differs from another case in what no rule reads is for `make test-slow`.
MORE = re.compile(
    r"opset (13|23)$|^(Sub|Div|Tanh|GlobalMaxPool) .|opset 25$|" + "|".join(f" {name}" for name in FUNCTIONS)
)
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow) if MORE.search(name) else name for name in CASES]


@pytest.mark.skipif(RUNS_AS != "x86_64", reason="on ARM onnxruntime keeps int8 as it is, see ort.toml")
@pytest.mark.parametrize("name", PARAMETERS)
def test_what_lint_says_is_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    model = CASES[name]()
    found = judged(model)
    refused = {node: finding for node, finding in found.items() if finding.verdict == "refused"}
    try:
        optimised = load(model, tmp_path / "optimised.onnx")
    except Exception as error:
        assert refused, f"onnxruntime refuses the file: {error}"
        return
    if refused:
        assert breaks(model), f"onnxruntime runs the file: {refused}"
        return
    said = {node: finding.verdict for node, finding in found.items()}
    assert said == verdicts(optimised, ir.from_proto(model), said)


def breaks(model: onnx.ModelProto) -> bool:
    """Whether the model fails when it is run optimised, or computes something else then."""
    random = np.random.default_rng(0)
    feeds = {
        value.name: 3 * random.random([side.dim_value for side in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
    }
    plain = run(model, feeds, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    try:
        fast = run(model, feeds, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    except Exception:  # onnxruntime's own exceptions share no base class but this
        return True
    return any(np.abs(a - b).max() > 0.05 * np.abs(a).max() for a, b in zip(plain, fast, strict=True))


def test_no_case_is_there_twice() -> None:
    assert len(CASES) == sum(1 for _ in cases())


def test_every_rule_of_the_target_is_tried() -> None:
    tried = {node.op_type for build in CASES.values() for node in build().graph.node}
    elsewhere = {"*", "integer Clip", "QLinear", "BatchNormalization", "Squeeze", "Unsqueeze"}
    assert set(load_target("ort").operators) - elsewhere <= tried
    assert set(sketch.TYPES) - {"int32"} <= {name for name in sketch.TYPES if any(name in case for case in CASES)}
