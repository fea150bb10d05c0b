"""The rules of the target openvino against OpenVINO itself: the precisions of its compiled graph, node by node."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxdfq
from onnxdfq.targets import load_target
from passes.graph.operators import ACTIVATIONS, ELEMENTWISE
from passes.lint.lint import Finding, lint

from . import openvino_graph
from .ort_graph import RUNS_AS, run
from .sketch import Sketch
from .test_lint_ort import CASES

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")

# OpenVINO 2026.4 does not raise but abort on these, and would take the tests with it.
ABORTS = frozenset({"MatMul uint4", "Gemm uint4"})
# Scales along the inner axis it takes wrongly for one batch only; to be refused is right all the same.
RIGHT_BY_CHANCE = frozenset({"MatMul + Add axis 0 (2, 4)"})
COMPARED = [name for name in CASES if name not in ABORTS | RIGHT_BY_CHANCE]
# The compiler takes a tenth of a second a graph, so most of them are for `make test-slow`.
QUICK = (
    "conv",
    "conv int8",
    "conv uint8 around 128",
    "conv uint8 weight",
    "conv weight axis 1",
    "conv transposed",
    "conv int8 bias",
    "conv relu int8",
    "conv float output",
    "conv read twice",
    "conv float weight",
    "conv int4 weight",
    "conv int2 weight",
    "conv uint4",
    "conv uint16",
    "residual uint8",
    "residual int8",
    "Add uint8",
    "Concat int8 second",
    "Concat float second",
    "MaxPool another scale",
    "MaxPool float input",
    "MaxPool uint16",
    "AveragePool int8 to uint8",
    "GlobalAveragePool float output",
    "ReduceMean",
    "Tanh",
    "MatMul",
    "MatMul axis 0",
    "MatMul computed",
    "MatMul computed int8",
    "MatMul int4 weight",
    "MatMul only int8 weight",
    "Gemm uint8 weight",
    "Gemm beta",
    "Reshape then Sigmoid, int8, opset 21",
    "QLinearConv uint8",
    "QLinearConv int8 per channel",
    "QLinearMatMul uint8",
)


def judged(model: onnx.ModelProto | ir.Model) -> dict[str, Finding]:
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    return {finding.node: finding for finding in lint(model, load_target("openvino"))}


@pytest.mark.skipif(RUNS_AS != "x86_64", reason="the rules were tried on x86-64")
@pytest.mark.parametrize("name", QUICK)
def test_what_lint_says_is_what_openvino_does(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(RUNS_AS != "x86_64", reason="the rules were tried on x86-64")
@pytest.mark.parametrize("name", sorted(set(COMPARED) - set(QUICK)))
def test_what_lint_says_is_what_openvino_does_with_every_graph(name: str, tmp_path: Path) -> None:
    compare(name, tmp_path)


@pytest.mark.parametrize("name", sorted(ABORTS))
def test_what_makes_openvino_abort_is_refused(name: str) -> None:
    assert "refused" in {finding.verdict for finding in judged(CASES[name]()).values()}


def compare(name: str, folder: Path) -> None:
    model = CASES[name]()
    found = judged(model)
    refused = {node: finding for node, finding in found.items() if finding.verdict == "refused"}
    try:
        graph = openvino_graph.compile_graph(model, folder)
    except RuntimeError as error:
        assert refused, f"OpenVINO refuses the file: {error}"
        return
    if refused:
        assert is_wrong(model, folder), f"OpenVINO computes the same: {refused}"
        return
    disagree(found, openvino_graph.verdicts(graph, ir.from_proto(model), set(found)))


def disagree(found: dict[str, Finding], runtime: dict[str, str]) -> None:
    """Layers, pools and Concat have to agree. Of what is element by element, and of products of two computed uint8, it
    is enough that nothing in float is called integer: where zero points are not 0, both were seen. What is refused for
    its wrong numbers compiles all the same."""
    for node, verdict in runtime.items():
        said = found[node]
        if said.verdict == "refused" and "computes wrong" in said.reason:
            continue
        product = said.op_type == "MatMul" and "for uint8 and uint8" in said.reason
        if said.verdict == "float" and (product or said.op_type in ACTIVATIONS | ELEMENTWISE):
            continue
        assert said.verdict == verdict, said


def test_a_product_of_computed_uint8_is_float(tmp_path: Path) -> None:
    model = CASES["MatMul computed"]()
    graph = openvino_graph.compile_graph(model, tmp_path)
    assert openvino_graph.verdicts(graph, ir.from_proto(model), {"node"}) == {"node": "float"}
    assert judged(model)["node"].verdict == "float"


def is_wrong(model: onnx.ModelProto, folder: Path) -> bool:
    """Whether OpenVINO computes something else than ONNX Runtime does, unoptimised."""
    random = np.random.default_rng(0)
    feeds = {
        value.name: 3 * random.random([side.dim_value for side in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
    }
    plain = run(model, feeds, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    onnx.save(model, folder / "model.onnx")
    compiled = openvino.Core().compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    fast = list(compiled(list(feeds.values())).values())
    return any(np.abs(a - b).max() > 0.05 * np.abs(a).max() for a, b in zip(plain, fast, strict=True))


def class_token(folder: Path) -> Path:
    """Patches of a Conv behind a token that is there once for every image of a batch of any size."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]>
        patches (float[N,3,6,6] image) => (float[N,17,8] tokens)
        <int64[3] rows = {0, 8, -1}, int64[1] zero = {0}, int64[2] rest = {1, 8}>
        {
            conv = Conv (image, weight, bias)
            flat = Reshape (conv, rows)
            patch = Transpose <perm = [0, 2, 1]> (flat)
            shape = Shape (image)
            batch = Gather (shape, zero)
            size = Concat <axis = 0> (batch, rest)
            token = Expand (start, size)
            tokens = Concat <axis = 1> (token, patch)
        }"""
    )
    random = np.random.default_rng(0)
    for name, shape in {"weight": (8, 3, 3, 3), "bias": (8,), "start": (1, 1, 8)}.items():
        values = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    path = folder / "patches.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_a_class_token_of_an_open_batch_is_refused_and_written_with_a_fixed_one(
    tmp_path: Path, dynamic_batch: bool
) -> None:
    written = tmp_path / "q.onnx"
    result = onnxdfq.compress(
        class_token(tmp_path),
        output=written,
        method="noise",
        images=8,
        normalize="none",
        tuning="none",
        target="openvino",
        dynamic_batch=dynamic_batch,
    )
    refused = [finding.reason for finding in onnxdfq.lint(written).findings if finding.verdict == "refused"]
    images = np.random.default_rng(1).integers(0, 256, (16, 6, 6, 3), np.uint8)
    (difference,) = onnxdfq.compare_runtimes(written, images, runtime="openvino")
    if dynamic_batch:
        assert refused == ["token is filled to a size that is left open, and OpenVINO, CPU then computes wrong"]
        assert difference.steps > 1
    else:
        assert not refused
        assert difference.steps <= 1
        assert any("batch is written as 1" in note for note in result.notes)


@pytest.mark.skipif(RUNS_AS != "x86_64", reason="the rules were tried on x86-64")
@pytest.mark.parametrize("clip", [(), (-8, 7)], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("layer", ["Conv", "MatMul"])
@pytest.mark.parametrize("adds", [False, True])
def test_what_joins_a_constant(layer: str, adds: bool, clip: tuple[int, ...], tmp_path: Path) -> None:
    """A plane that is the same for each image joins its channels, or a class token rows of features."""
    sketch, inner = Sketch(), (4, 4) if layer == "Conv" else (16,)

    def computed(x: str, channels: int) -> str:
        weight = sketch.weight(8, channels, 1, 1) if layer == "Conv" else sketch.weight(16, 16, axis=1)
        return sketch.op(layer, x, weight)

    x = sketch.qdq(sketch.input(1, 8, *inner), "int8")
    y = sketch.qdq(computed(x, 8), "int8", clip=clip)
    y = sketch.qdq(sketch.op("Concat", sketch.floats(1, 1, *inner), y, name="joins", axis=1), "int8", clip=clip)
    if adds:
        y = sketch.qdq(sketch.op("Add", y, sketch.floats(1, 9, *inner), name="adds"), "int8", clip=clip)
    model = sketch.model(computed(y, 9))
    found, graph = judged(model), openvino_graph.compile_graph(model, tmp_path)
    runtime = openvino_graph.verdicts(graph, ir.from_proto(model), {"joins", "adds"} & found.keys())
    assert "joins" in runtime and {name: found[name].verdict for name in runtime} == runtime
