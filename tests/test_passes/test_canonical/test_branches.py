"""inline_branches: If with a constant condition, its branch in its place; the same numbers before and after."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from passes.canonical.branches import inline_branches

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
CASES = {
    "a branch that reads what is around it": """net (float[N,3] x) => (float[N,3] y) {
        a = Relu (x) c = Constant <value = bool {1}> ()
        t = If (c) <then_branch = yes () => (float[N,3] p) { q = Neg (a) p = Add (q, x) },
                    else_branch = no () => (float[N,3] p) { p = Identity (x) }>
        y = Exp (t) }""",
    "the other branch, which hands an output through": """net (float[N,3] x) => (float[N,3] y, float[N,3] a) {
        a = Relu (x) c = Constant <value = bool {0}> ()
        y = If (c) <then_branch = yes () => (float[N,3] p) { p = Neg (a) },
                    else_branch = no () => (float[N,3] p) { p = Identity (a) }> }""",
    "names twice, and a branch within a branch": """net (float[N,3] x) => (float[N,3] y) {
        p = Relu (x) c = Constant <value = bool {1}> ()
        u = If (c) <then_branch = yes () => (float[N,3] r) {
                d = Constant <value = bool {0}> ()
                r = If (d) <then_branch = one () => (float[N,3] s) { s = Neg (x) },
                            else_branch = two () => (float[N,3] s) {
                                k = Constant <value = float {2}> () s = Mul (p, k) }> },
                    else_branch = no () => (float[N,3] r) { r = Identity (x) }>
        v = If (c) <then_branch = yes () => (float[N,3] r) { s = Abs (x) r = Add (s, u) },
                    else_branch = no () => (float[N,3] r) { r = Identity (x) }>
        y = Add (u, v) }""",
    "a condition that follows from constants": """net (float[N,3] x) => (float[N,3] y) {
        one = Constant <value = int64 {1}> () two = Constant <value = int64 {2}> () same = Equal (one, two)
        y = If (same) <then_branch = yes () => (float[N,3] p) { p = Neg (x) },
                       else_branch = no () => (float[N,3] p) { p = Abs (x) }> }""",
    "a condition that depends on the input stays": """net (float[N,3] x) => (float[N,3] y) {
        s = ReduceSum <keepdims = 0> (x) z = Constant <value = float {0}> () c = Greater (s, z)
        y = If (c) <then_branch = yes () => (float[N,3] p) { p = Neg (x) },
                    else_branch = no () => (float[N,3] p) { p = Identity (x) }> }""",
}


def run(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return [np.asarray(found) for found in session.run(None, {"x": x})]


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay(name: str) -> None:
    model = ir.from_proto(parser.parse_model(HEADER + CASES[name]))
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    before, outputs = run(model, x), [value.name for value in model.graph.outputs]
    count = inline_branches(model.graph)
    stays = "depends" in name
    assert (count == 0) == stays and any(node.op_type == "If" for node in model.graph) == stays
    assert [value.name for value in model.graph.outputs] == outputs
    for found, expected in zip(run(model, x), before, strict=True):
        np.testing.assert_array_equal(found, expected)
