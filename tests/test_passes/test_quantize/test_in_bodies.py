"""`switch_in_bodies`: with all switches on a file computes what it did, and with all off what it did before it was
quantized."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser
from onnx_ir.passes import common

from passes.quantize.in_bodies import switch_in_bodies

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
W = np.random.default_rng(0).integers(-60, 60, (8, 8)).astype("i1")
CONSTANTS = {"w": W, "s": np.float32(0.25), "sw": np.float32(0.01), "z": np.uint8(128), "zw": np.int8(0)}
PAIR = "{0}q = QuantizeLinear ({0}, s, z) {0}d = DequantizeLinear ({0}q, s, z)"
LAYER = f"{PAIR.format('h')} wd = DequantizeLinear (w, sw, zw) m = MatMul (hd, wd) {PAIR.format('m')}"
CLIPPED = "what a Clip holds, and what moves as integers"
CASES = {
    "a branch": """net (bool c, float[N,8] x) => (float[N,8] y) {
        y = If (c) <then_branch = yes () => (float[N,8] t) { h = Neg (x) LAYER t = Relu (md) },
                    else_branch = no () => (float[N,8] t) { h = Abs (x) LAYER t = Identity (md) }> }""",
    CLIPPED: """net (bool c, float[N,8] x) => (float[N,8] y) {
        h = Neg (x) shape = Constant <value = int64[2] {-1, 8}> ()
        y = If (c) <then_branch = yes () => (float[N,8] t) {
                        low = Constant <value = uint8 {120}> () high = Constant <value = uint8 {140}> ()
                        hq = QuantizeLinear (h, s, z) hc = Clip (hq, low, high) hr = Reshape (hc, shape)
                        t = DequantizeLinear (hr, s, z) },
                    else_branch = no () => (float[N,8] e) { e = Abs (x) }> }""",
    "a constant alone": """net (bool c, float[N,8] x) => (float[N,8] y) {
        y = If (c) <then_branch = yes () => (float[N,8] t) { t = DequantizeLinear (w, sw, zw) },
                    else_branch = no () => (float[N,8] t) { t = Identity (x) }> }""",
    "a branch of a loop": """net (bool c, float[N,8] x) => (float[N,8] y) {
        most = Constant <value = int64 {2}> () go = Constant <value = bool {1}> ()
        y = Loop (most, go, x) <body = step (int64 i, bool on, float[N,8] h) => (bool on_, float[N,8] k) {
            on_ = Identity (on) LAYER
            k = If (c) <then_branch = yes () => (float[N,8] t) { n = Neg (md) NPAIR t = Relu (nd) },
                        else_branch = no () => (float[N,8] e) { e = Abs (md) }> }> }""",
}


def _model(name: str) -> ir.Model:
    model = parser.parse_model(HEADER + CASES[name].replace("LAYER", LAYER).replace("NPAIR", PAIR.format("n")))
    words = set(str(model).split('"'))
    read = {name: array for name, array in CONSTANTS.items() if name in words}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in read.items())
    onnx.checker.check_model(model)
    found = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(found)
    return found


def _run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return np.asarray(session.run(None, feeds)[0])


def _set(model: ir.Model, switches: list[str], to: float) -> ir.Model:
    for name in switches:
        model.graph.initializers[name].const_value = ir.tensor(np.float32(to), name=name)
    return model


def _floats(name: str, x: np.ndarray, taken: bool) -> np.ndarray:
    """What a case computes without quantizers."""
    weight = W * np.float32(0.01)
    match name:
        case "a branch":
            return np.maximum(-x @ weight, 0) if taken else np.abs(x) @ weight
        case "a constant alone":
            return weight if taken else x
        case "a branch of a loop":
            for _ in range(2):
                x = np.maximum(-x @ weight, 0) if taken else np.abs(x @ weight)
            return x
        case _:  # the Clip stands for one of the network's own
            return np.clip(-x, -2, 3) if taken else np.abs(x)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_what_is_switched_is_what_the_file_quantizes(name: str, taken: bool) -> None:
    feeds = {"c": np.array(taken), "x": np.random.default_rng(1).normal(size=(8, 8)).astype("f4") * 2}
    expected = _run(_model(name), feeds)
    model = _model(name)
    found, constants = switch_in_bodies(model)
    switches = [switch for _, switch in found.values()]
    assert not any(graph.initializers for graph in model.graph.subgraphs())
    names = [value.name for node in model.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names) and not set(names) & model.graph.initializers.keys()
    assert all(("branch." in one.value or "body." in one.value) for one in constants)
    np.testing.assert_array_equal(_run(_set(model, switches, 1.0), feeds), expected)
    plain = _run(_set(model, switches, 0.0), feeds)
    np.testing.assert_allclose(plain, _floats(name, feeds["x"], taken), rtol=1e-5, atol=1e-5)
    assert np.array_equal(plain, expected) == (not switches or (name == CLIPPED and not taken))


def test_a_name_tells_whose_it_is() -> None:
    model = _model("a branch of a loop")
    found, constants = switch_in_bodies(model)
    title = next(node.name or f"{node.op_type} #1" for node in model.graph)
    assert title == "Loop #1"
    assert list(found) == ["Loop #1.body.hq", "Loop #1.body.mq", "Loop #1.body.If #1.then_branch.nq"]
    assert [one.value for one in constants] == ["Loop #1.body.wd"]
    assert {node.name for node in model.graph.all_nodes()} >= {
        "Loop #1.body.MatMul #1",
        "Loop #1.body.If #1.then_branch.Neg #1",
    }
