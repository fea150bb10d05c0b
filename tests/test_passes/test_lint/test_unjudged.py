"""Nodes that no rule judges: those that compute are told as float, with a reason that is true; others are left out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.model_file import read_model
from onnxdfq.report.linting import lint as lint_file
from onnxdfq.targets import load_target
from passes.lint.lint import Finding, lint

Build = Callable[..., ir.Model]


def judged(model: ir.Model, target: str = "ort") -> dict[str, Finding]:
    return {finding.node: finding for finding in lint(model, load_target(target)) if finding.node}


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt"])
def test_an_operator_of_another_domain(shared_cases: Path, target: str) -> None:
    found = lint_file(shared_cases / "fused_conv_microsoft.onnx", target=target)
    fused = next(finding for finding in found.findings if finding.op_type == "FusedConv")
    assert (fused.node, fused.verdict) == ("FusedConv #1", "float")
    assert fused.reason == "it is an operator of com.microsoft, and no integer form of it is known"


def test_recurrent_layers(shared_cases: Path) -> None:
    found = lint_file(shared_cases / "lstm_head_after_cnn.onnx").findings
    (lstm,) = (finding for finding in found if finding.op_type == "LSTM")
    assert (lstm.node, lstm.verdict) == ("LSTM #1", "float")
    assert lstm.reason == "no integer kernel of ONNX Runtime, CPU is known for LSTM"


IF = """(float[2,3] x) => (float[2,3] y) {
    n = Size (x)
    c = Greater (n, one)
    y = If (c) <
        then_branch = a () => (float[2,3] t) { %s },
        else_branch = b () => (float[2,3] e) { e = Neg (x) }
    >
}"""


@pytest.mark.parametrize(
    ("branch", "listed"),
    [
        ("t = Abs (x)", ["If_y.then_branch.Abs #1"]),
        ("q = QuantizeLinear (x, s) t = DequantizeLinear (q, s)", []),
        ("f = Cast <to = 1> (n) h = Sqrt (f) t = Identity (x)", []),
    ],
)
@pytest.mark.parametrize("target", ["ort", "openvino"])
def test_for_an_if_stand_the_nodes_of_its_branches(build: Build, branch: str, listed: list[str], target: str) -> None:
    arrays = {"one": np.array(1)} | ({"s": np.float32(1)} if "s)" in branch else {})
    found = judged(build(IF % branch, **arrays), target)
    assert list(found) == [*listed, "If_y.else_branch.Neg #1"], "not what decides by sizes alone"


def test_names_in_a_branch_begin_with_the_branch(build: Build) -> None:
    model = build(IF % "g = Abs (x) h = Abs (g) t = Exp (h)", one=np.array(1))
    first, _, third = model.graph.node("If_y").attributes["then_branch"].as_graph()
    first.name, third.name = "abs", "If_y.then_branch.exp"  # as compress writes it
    assert list(judged(model)) == [
        "If_y.then_branch.abs",
        "If_y.then_branch.Abs #2",
        "If_y.then_branch.exp",
        "If_y.else_branch.Neg #1",
    ]


@pytest.mark.parametrize(
    ("body", "listed"),
    [
        ("y = Exp (x)", ["Exp_y"]),
        ("a = Max (x, x) y = Min (a, x)", ["Max_a", "Min_y"]),
        ('y = Resize <mode = "linear"> (x, , k)', ["Resize_y"]),
        ('y = Resize <mode = "nearest"> (x, , k)', []),
        ("y = Pad (x, p)", []),
        ("c = Less (x, x) y = Where (c, x, x)", []),
        ("a = Exp (k) y = Reshape (x, u)", []),  # of constants alone
    ],
)
def test_what_computes_is_listed_and_what_places_numbers_is_not(build: Build, body: str, listed: list[str]) -> None:
    arrays = {"k": np.ones(4, "f4"), "p": np.zeros(8, "i8"), "u": np.array([1, 2, 4, 4])}
    used = {name: array for name, array in arrays.items() if f" {name})" in body or f"({name})" in body}
    found = judged(build("(float[1,2,4,4] x) => (float[1,2,4,4] y) { " + body + " }", **used))
    assert list(found) == listed
    assert {finding.verdict for finding in found.values()} <= {"float"}


def test_shape_arithmetic_on_floats_is_left_out(build: Build) -> None:
    text = """(float[N,M] x) => (float[N,M] y) {
        s = Shape (x)
        f = CastLike (s, x)
        r = Sqrt (f)
        h = Mul (r, r)
        i = Cast <to = 7> (h)
        y = Reshape (x, i)
    }"""
    assert judged(build(text)) == {}


def test_weights_of_few_bits(build: Build) -> None:
    model = build("(float[N,32] x) => (float[N,2] y) { y = MatMul (x, w) }", w=np.ones((32, 2), "f4"))
    node = model.graph.node("MatMul_y")
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    assert judged(model)["MatMul_y"].reason == "only its weight is held as integers"


def test_nodes_without_a_name_are_told_by_operator_and_place(shared_cases: Path) -> None:
    path = shared_cases / "empty_names_only.onnx"
    assert all(not node.name for node in read_model(path).graph if node.op_type in ("Conv", "Relu"))
    names = [finding.node for finding in lint_file(path).findings if finding.op_type in ("Conv", "Relu")]
    assert names == ["Conv #1", "Relu #1", "Conv #2", "Relu #2"]


def test_a_transformer_of_torch_has_no_shape_arithmetic_in_it(shared_data: Path) -> None:
    found = lint_file(shared_data / "models" / "vit_cifar10.onnx").findings
    assert "Sqrt" not in {finding.op_type for finding in found}
