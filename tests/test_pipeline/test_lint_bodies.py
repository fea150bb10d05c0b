"""The rules of the target ort in bodies of If, Loop and Scan against ONNX Runtime: small graphs, and all of others."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from ..slow import all_but
from .bodies import IN_BODIES, InBody
from .ort_graph import RUNS_AS, load, run, verdicts_in_bodies
from .test_lint_ort import CASES, judged

pytestmark = pytest.mark.skipif(RUNS_AS != "x86_64", reason="on ARM onnxruntime keeps int8 as it is, see ort.toml")

# Where bodies differ from graphs, by what they capture; and the fusions that are everywhere.
QUICK = (
    "conv",
    "conv float output",
    "conv float weight",
    "conv int8",
    "conv relu",
    "residual int8",
    "residual relu",
    "Add itself int8",
    "Concat",
    "MaxPool",
    "MaxPool float input",
    "Sigmoid then Pad, int8",
    "Relu",
    "Clip beyond",
    "uint4 clipped",
    "MatMul",
    "MatMul int8, float output",
    "MatMul + Add relu (2, 4)",
    "MatMul only int8 weight",
    "MatMul only int2 weight",
    "Gemm float weight and bias",
    "Gemm blocks int4 float float",
    "Reshape then Sigmoid, int8, opset 21",
)
# A shape of the operator's own that ONNX Runtime does not merge with that of the If.
UNREADABLE = {"conv opset 10"}
HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
CONSTANTS = {
    "w": np.random.default_rng(0).integers(-60, 60, (8, 8)).astype("i1"),
    "v": np.random.default_rng(1).integers(-60, 60, (8, 8)).astype("i1"),
    "s": np.float32(0.05),
    "sw": np.float32(0.01),
    "z": np.uint8(128),
    "zi": np.int8(0),
    "zw": np.int8(0),
    "zu": np.uint8(3),
    "wu": np.random.default_rng(2).integers(0, 60, (8, 8)).astype("u1"),
    "most": np.int64(3),
    "on": np.bool_(True),
}


@pytest.mark.parametrize("own", [True, False], ids=["own constants", "captured constants"])
@pytest.mark.parametrize("kind", IN_BODIES)
@pytest.mark.parametrize("name", all_but([name for name in CASES if name not in UNREADABLE], QUICK))
def test_what_lint_says_of_a_body_is_what_onnxruntime_does(name: str, kind: InBody, own: bool, tmp_path: Path) -> None:
    plain = CASES[name]()
    model = kind(plain, own=own)
    found = judged(model)
    refused = [finding for finding in found.values() if finding.verdict == "refused"]
    try:
        optimised = load(model, tmp_path / "optimised.onnx")
    except Exception as error:
        assert refused, f"onnxruntime refuses the file: {error}"
        return
    if refused:  # when it runs, as test_lint_ort.py has it of the graph itself
        assert "refused" in {finding.verdict for finding in judged(plain).values()}
        return
    assert {finding.op_type for finding in found.values()} >= {
        finding.op_type for finding in judged(plain).values() if finding.verdict != "refused"
    }
    said = {node: finding.verdict for node, finding in found.items()}
    assert said == verdicts_in_bodies(optimised, model, said)


def build(text: str, *, own: tuple[str, ...] = ()) -> onnx.ModelProto:
    """own: the constants that stand in the bodies; all others are those of the graph."""
    model = parser.parse_model(HEADER + text)
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    stored = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in words]
    waiting, inside = [model.graph], False
    while waiting:
        graph = waiting.pop()
        graph.initializer.extend(tensor for tensor in stored if (tensor.name in own) == inside)
        inside = True
        for node in graph.node:
            node.name = f"{node.op_type}_{node.output[0]}"
            waiting.extend(attribute.g for attribute in node.attribute if attribute.HasField("g"))
    onnx.checker.check_model(model)
    return model


def pair(value: str, zero: str = "z") -> str:
    return f"{value}q = QuantizeLinear ({value}, s, {zero}) {value}d = DequantizeLinear ({value}q, s, {zero})"


W, V = "wd = DequantizeLinear (w, sw, zw)", "vd = DequantizeLinear (v, sw, zw)"
BRANCHES = """net (bool c, float[N,8] x) => (float[N,8] y) {{ {around}
    r = If (c) <then_branch = yes () => (float[N,8] t) {{ {yes} }}, else_branch = no () => (float[N,8] e) {{ {no} }}>
    y = Identity (r) }}"""


def branches(yes: str, *, around: str = "", no: str = "e = Abs (x)") -> str:
    return BRANCHES.format(around=around, yes=yes, no=no)


MATMUL = f"{W} m = MatMul (xd, wd) {pair('m')} t = Identity (md)"
BETWEEN: dict[str, tuple[str, dict[str, str]]] = {
    "a DequantizeLinear of the graph around does not count": (
        branches(MATMUL, around=pair("x")),
        {"If_r.then_branch.MatMul_m": "float"},
    ),
    "nor does that of a weight": (
        branches(f"{pair('x')} m = MatMul (xd, wd) {pair('m')} t = Identity (md)", around=W),
        {"If_r.then_branch.MatMul_m": "float"},
    ),
    "integers of the graph around do": (
        branches(f"xd = DequantizeLinear (xq, s, z) {MATMUL}", around="xq = QuantizeLinear (x, s, z)"),
        {"If_r.then_branch.MatMul_m": "integer"},
    ),
    "a node whose bodies read a value reads it once": (
        branches("t = Neg (md)", around=f"{pair('x')} {W} m = MatMul (xd, wd) {pair('m', 'zi')}", no="e = Abs (md)"),
        {"MatMul_m": "integer", "If_r.then_branch.Neg_t": "float"},
    ),
    "quantized in the body alone": (
        branches(
            f"{pair('m')} {V} n = MatMul (md, vd) {pair('n')} t = Identity (nd)",
            around=f"{pair('x')} {W} m = MatMul (xd, wd)",
        ),
        {"MatMul_m": "integer", "If_r.then_branch.MatMul_n": "integer"},
    ),
    "a branch of a loop": (
        f"""net (bool c, float[N,8] x) => (float[N,8] y) {{
        y = Loop (most, on, x) <body = step (int64 i, bool go, float[N,8] h) => (bool on_, float[N,8] k) {{
            on_ = Identity (go) {pair("h")} {W} m = MatMul (hd, wd) {pair("m")}
            k = If (c) <then_branch = yes () => (float[N,8] t) {{
                            mdd = DequantizeLinear (mq, s, z) {V} n = MatMul (mdd, vd) t = Relu (n) }},
                        else_branch = no () => (float[N,8] e) {{ e = Abs (md) }}> }}> }}""",
        {
            "Loop_y.body.MatMul_m": "integer",
            "Loop_y.body.If_k.then_branch.MatMul_n": "integer",
            "Loop_y.body.If_k.then_branch.Relu_t": "float",
        },
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_crosses_the_edge_of_a_body(name: str, tmp_path: Path) -> None:
    text, wanted = BETWEEN[name]
    model = build(text)
    said = {node: finding.verdict for node, finding in judged(model).items()}
    assert {node: said.get(node) for node in wanted} == wanted
    assert said == verdicts_in_bodies(load(model, tmp_path / "optimised.onnx"), model, said)


CONDITIONS = {
    "on": "",
    "folded": "off = Not (on) folded = Not (off)",
    "many": "less = Less (s, sw) equal = Equal (most, most) many = Xor (less, equal)",
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_branch_that_is_never_taken_is_not_judged(condition: str, tmp_path: Path) -> None:
    text = branches(f"{pair('x')} {MATMUL}", around=CONDITIONS[condition])
    model = build(text.replace("net (bool c, ", "net (").replace("If (c)", f"If ({condition})"))
    assert [(node, finding.verdict) for node, finding in judged(model).items()] == [
        ("If_r.then_branch.MatMul_m", "integer")
    ]
    optimised = load(model, tmp_path / "optimised.onnx")
    assert [node.op_type for node in optimised.graph.node] == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]


@pytest.mark.parametrize("own", [("wu", "s"), ("wu", "s", "zu")])
def test_a_zero_point_that_is_left_out_is_refused(own: tuple[str, ...]) -> None:
    model = build(branches("wd = DequantizeLinear (wu, s, zu) t = MatMul (x, wd)"), own=own)
    verdict = judged(model)["If_r.then_branch.MatMul_t"].verdict
    feeds = {"c": np.array(True), "x": np.ones((2, 8), "f4")}
    plain, fast = (
        run(model, feeds, getattr(onnxruntime.GraphOptimizationLevel, level))[0]
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    )
    assert bool(np.allclose(plain, fast, rtol=1e-3)) == ("zu" in own)
    assert verdict == ("float" if "zu" in own else "refused")
