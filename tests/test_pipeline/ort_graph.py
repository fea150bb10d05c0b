"""What ONNX Runtime makes of a model: its optimised graph, read as one verdict a node."""

import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

RUNS_AS = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
ON_INTEGERS = ("QLinear", "QGemm", "MatMulIntegerToFloat")
MOVES = ("Clip", "Flatten", "MaxPool", "ReduceMax", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def session(
    model: onnx.ModelProto | Path, level: onnxruntime.GraphOptimizationLevel, saved: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    content = model if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: onnxruntime.GraphOptimizationLevel
) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session(model, level).run(None, feeds)
    return outputs


def load(model: onnx.ModelProto | Path, saved: Path) -> onnx.ModelProto:
    """The optimised graph. At "extended", for the level beyond changes layouts, and names with them."""
    session(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, saved)
    return onnx.load(saved)


def verdicts(optimised: onnx.ModelProto, source: ir.Model, names: Iterable[str]) -> dict[str, str]:
    """ "integer" or "float" for the nodes of `source` of these names."""
    nodes = {node.name or "": node for node in source.graph}
    return {name: _verdict(optimised, nodes[name]) for name in names}


def _verdict(optimised: onnx.ModelProto, node: ir.Node) -> str:
    """A fused node keeps the name of the linear node in it, or begins with it."""
    name = node.name or ""
    fused = [found for found in optimised.graph.node if found.op_type.startswith("Fused")]
    if any(name in _names(found) for found in fused):
        return "float"
    producers = {output: found for found in optimised.graph.node for output in found.output}
    for found in optimised.graph.node:
        # a MatMul with its Add becomes a Gemm, and names of decomposed functions are new
        merged = found.op_type in ("Gemm", "QGemm") and found.name.startswith(f"{name}/")
        if found.name == name or merged:
            return _kind(found, producers)
    for output in node.outputs:
        if output.name in producers:
            return _kind(producers[output.name or ""], producers)
    # It is gone, and what stood before it does its work.
    before = next((value.producer() for value in node.inputs if value is not None and value.producer()), None)
    if before is not None and (node.op_type == "Add" or any((before.name or "") in _names(found) for found in fused)):
        return _verdict(optimised, before)
    return "integer"


def _kind(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> str:
    if node.op_type.startswith(ON_INTEGERS):
        return "integer"
    if node.op_type not in MOVES:
        return "float"
    before = producers.get(node.input[0])
    while before is not None and before.op_type in MOVES:
        before = producers.get(before.input[0])
    return "integer" if before is not None and before.op_type.startswith(("QuantizeLinear", *ON_INTEGERS)) else "float"


def _names(node: onnx.NodeProto) -> list[str]:
    """Of the nodes that a fused one is made of."""
    return [name.split("/MatMulAddFusion")[0] for name in node.name.split()]


def verdicts_in_bodies(optimised: onnx.ModelProto, source: onnx.ModelProto, names: Iterable[str]) -> dict[str, str]:
    """The same, where names may be of nodes in bodies, as lint gives them: "If_y.then_branch.Conv_a"."""
    bodies = dict(_bodies(source.graph, ""))
    by_body: dict[str, list[str]] = {}
    for name in names:
        prefix = max((prefix for prefix in bodies if name.startswith(prefix)), key=len)
        by_body.setdefault(prefix, []).append(name)
    found = {}
    runs = dict(_bodies(optimised.graph, ""))
    for prefix, listed in by_body.items():
        graphs = onnx.ModelProto(graph=runs[prefix]), onnx.ModelProto(graph=bodies[prefix], ir_version=10)
        alone, model = graphs[0], ir.from_proto(graphs[1])
        held = {node.name or "" for node in model.graph}
        short = {name: name if name in held else name.removeprefix(prefix) for name in listed}
        said = verdicts(alone, model, short.values())
        found.update({name: said[own] for name, own in short.items()})
    return found


def _bodies(graph: onnx.GraphProto, prefix: str) -> Iterator[tuple[str, onnx.GraphProto]]:
    yield prefix, graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name = node.name if node.name.startswith(prefix) else prefix + node.name
                yield from _bodies(attribute.g, f"{name}.{attribute.name}.")
