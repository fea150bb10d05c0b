"""Layers inside If and Loop: integers inside, the same numbers outside."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxdfq

from ..slow import all_but
from .ort_graph import RUNS_AS, load, verdicts_in_bodies

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
W = {name: np.random.default_rng(seed).normal(size=(8, 8)).astype("f4") / 3 for seed, name in enumerate("wuv")}
CASES = {
    "two branches, by what the input is": """net (float[N,8] x) => (float[N,8] y) {
        a = MatMul (x, w) s = ReduceSum <keepdims = 0> (x) z = Constant <value = float {0}> () c = Greater (s, z)
        b = If (c) <then_branch = yes () => (float[N,8] p) { h = MatMul (a, u) p = Relu (h) },
                    else_branch = no () => (float[N,8] p) { h = MatMul (a, v) g = Neg (h) p = MatMul (g, u) }>
        y = MatMul (b, w) }""",
    "a loop with a state, and what is around it": """net (float[N,8] x) => (float[N,8] y) {
        a = MatMul (x, w) n = Constant <value = int64 {3}> () c = Constant <value = bool {1}> ()
        y = Loop (n, c, x) <body = step (int64 i, bool go, float[N,8] h) => (bool on, float[N,8] k) {
            on = Identity (go) m = MatMul (h, u) r = Relu (m) k = Add (r, a) }> }""",
    "nothing but a branch": """net (float[N,8] x) => (float[N,8] y) {
        s = ReduceSum <keepdims = 0> (x) z = Constant <value = float {0}> () c = Greater (s, z)
        y = If (c) <then_branch = yes () => (float[N,8] p) { p = MatMul (x, u) },
                    else_branch = no () => (float[N,8] p) { p = MatMul (x, v) }> }""",
}


def saved(text: str, folder: Path) -> Path:
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in W.items())
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("name", all_but(CASES, ["a loop with a state, and what is around it"]))
def test_bodies_compute_on_integers(name: str, tmp_path: Path) -> None:
    path = saved(CASES[name], tmp_path)
    x = np.random.default_rng(7).normal(size=(64, 8)).astype("f4")
    result = onnxdfq.compress(path, output=tmp_path / "q.onnx", calibration=x)
    written = onnx.load(tmp_path / "q.onnx")
    bodies = [attribute.g for node in written.graph.node for attribute in node.attribute if attribute.HasField("g")]
    assert bodies
    for body in bodies:
        operators = [node.op_type for node in body.node]
        assert operators.count("QuantizeLinear") >= 1 and "DequantizeLinear" in operators
        stored = {tensor.name: tensor for tensor in body.initializer}
        weights = [node for node in body.node if node.op_type == "MatMul"]
        made = {node.output[0]: node for node in body.node}
        for node in weights:
            source = made[node.input[1]]
            assert source.op_type == "DequantizeLinear"
            assert stored[source.input[0]].data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    names = {tensor.name for tensor in written.graph.initializer}
    assert not names & {tensor.name for body in bodies for tensor in body.initializer}
    _agrees_with_onnxruntime(result, tmp_path / "q.onnx")
    verdicts = {
        finding.verdict for finding in onnxdfq.lint(tmp_path / "q.onnx").findings if finding.op_type == "MatMul"
    }
    assert verdicts == {"integer"}, "those that read what an If gives, too"
    # one sample at a time, for each may take another branch
    clear = [row[np.newaxis] for row in x if abs(row.sum()) > 0.5][:8]  # on which side of a condition it lies
    levels = [onnxdfq.evaluate(tmp_path / "q.onnx", row, against=path).sqnr_db for row in clear]
    assert all(level is not None and level > 20 for level in levels)
    assert result.metrics["verdict"] != "poor"
    # a model whose branch the whole batch decides is worked on one by one; its file takes any batch all the same
    found, expected = (
        onnxruntime.InferenceSession(file).run(None, {"x": x[:16]})[0] for file in (tmp_path / "q.onnx", path)
    )
    assert found.shape == expected.shape == (16, 8)
    assert np.square(found - expected).mean() < 0.02 * np.square(expected).mean()


def _agrees_with_onnxruntime(result: onnxdfq.Result, path: Path) -> None:
    """What is counted of the nodes in bodies is what ONNX Runtime makes of them."""
    said = {finding.node: finding.verdict for finding in onnxdfq.lint(path).findings}
    counted = [list(said.values()).count(verdict) for verdict in ("integer", "float")]
    assert counted == [result.metrics["nodes_integer"], result.metrics["nodes_float"]]
    layers = {node for node in said if ("body." in node or "branch." in node) and "MatMul" in node}
    assert layers and {said[node] for node in layers} == {"integer"}
    if RUNS_AS == "x86_64":
        assert said == verdicts_in_bodies(load(path, path.with_name("optimised.onnx")), onnx.load(path), said)


@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
@pytest.mark.parametrize("name", CASES)
def test_what_crosses_the_edge_of_a_body_is_rounded_once(name: str, scheme: str, tmp_path: Path) -> None:
    x = np.random.default_rng(7).normal(size=(64, 8)).astype("f4")
    onnxdfq.compress(saved(CASES[name], tmp_path), output=tmp_path / "q.onnx", calibration=x, scheme=scheme)
    graph = onnx.load(tmp_path / "q.onnx").graph
    around = _grids(graph)
    (node,) = (node for node in graph.node if node.op_type in ("If", "Loop"))
    for body in (attribute.g for attribute in node.attribute):
        inside = _grids(body)
        captured = around.keys() & {value for other in body.node for value in other.input}
        assert captured  # dequantized there, and quantized again here
        for value in captured & inside.keys():
            assert inside[value] == around[value]
        for given, result in zip(list(body.output)[-len(node.output) :], node.output, strict=True):
            step, zero = inside[given.name]
            assert step == around[result][0] and zero in (0, around[result][1])


def _grids(graph: onnx.GraphProto) -> dict[str, tuple[float, int]]:
    """Scale and zero point of values that are quantized, or dequantized."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        name: (float(stored[node.input[1]]), int(stored[node.input[2]]))
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in stored
        for name in (node.input[0], node.output[0])
    }


def test_a_loop_keeps_the_grid_that_its_first_rounds_need(tmp_path: Path) -> None:
    text = CASES["a loop with a state, and what is around it"].replace(
        "k = Add (r, a)", "e = Add (r, h) k = Mul (e, t)"
    )
    path = saved(text.replace("a = MatMul (x, w)", "t = Constant <value = float {0.4}> ()"), tmp_path)
    x = np.random.default_rng(7).normal(size=(64, 8)).astype("f4")
    onnxdfq.compress(path, output=tmp_path / "q.onnx", calibration=x)
    found = onnxdfq.evaluate(tmp_path / "q.onnx", x[:16], against=path).sqnr_db
    assert found is not None and found > 20


def test_bits_of_layers_are_those_of_layers_around(tmp_path: Path) -> None:
    path = saved(CASES["two branches, by what the input is"], tmp_path)
    x = np.random.default_rng(7).normal(size=(32, 8)).astype("f4")
    (tmp_path / "plan.toml").write_text('[layers]\nMatMul_0 = "w4a8"\n')
    onnxdfq.compress(path, output=tmp_path / "q.onnx", calibration=x, plan=tmp_path / "plan.toml", tuning="none")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert np.abs(stored["w_quantized"]).max() <= 8 < np.abs(stored["w.MatMul_9_quantized"]).max()


def test_a_branch_that_nothing_takes_stays_float_and_is_named(tmp_path: Path) -> None:
    path = saved(CASES["two branches, by what the input is"], tmp_path)
    x = np.abs(np.random.default_rng(7).normal(size=(32, 8))).astype("f4")
    result = onnxdfq.compress(path, output=tmp_path / "q.onnx", calibration=x)
    assert any("else_branch" in note and "no image takes it" in note for note in result.notes)


def test_a_size_that_a_body_leaves_open_is_not_the_batch(tmp_path: Path) -> None:
    path = saved(
        CASES["a loop with a state, and what is around it"].replace("float[N,8] h", "float[N,free] h"), tmp_path
    )
    x = np.random.default_rng(7).normal(size=(32, 8)).astype("f4")
    onnxdfq.compress(path, output=tmp_path / "q.onnx", calibration=x, target="qnn")
    level = onnxdfq.evaluate(tmp_path / "q.onnx", x[:1], against=path).sqnr_db
    assert level is not None and level > 20
