"""What OpenVINO's CPU plugin makes of a model: the precisions of its compiled graph, one verdict a node."""

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

LAYERS = {
    "Conv": ("Convolution",),
    "ConvTranspose": ("Deconvolution",),
    "Gemm": ("FullyConnected", "MatMul"),
    "MatMul": ("FullyConnected", "MatMul"),
    "Concat": ("Concatenation",),
    "MaxPool": ("Pooling",),
    "AveragePool": ("Pooling", "Reduce"),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean"), ("Reduce", "Pooling")),
}


def compile_graph(model: onnx.ModelProto | Path, folder: Path) -> list[Any]:
    """The nodes of the compiled graph."""
    import openvino

    path = model if isinstance(model, Path) else folder / "model.onnx"
    if not isinstance(model, Path):
        onnx.save(model, path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    nodes: list[Any] = compiled.get_runtime_model().get_ordered_ops()
    return nodes


def verdicts(graph: list[Any], source: ir.Model, names: set[str]) -> dict[str, str]:
    """ "integer" or "float" for the nodes of `source` of these names; nodes that cannot be told are left out."""
    nodes = {node.name or "": node for node in source.graph}
    return {name: found for name in names if (found := _verdict(graph, nodes[name])) is not None}


def _verdict(graph: list[Any], node: ir.Node) -> str | None:
    """Found under the name of the node or of its output, with what OpenVINO's passes hang on to them."""
    candidates = {node.name or "", *(value.name or "" for value in node.outputs)}
    of_type = [found for found in graph if _info(found, "layerType") in LAYERS.get(node.op_type, ())]
    named = [found for found in graph if candidates & _names(found)]
    at_home = [found for found in named if found in of_type]
    if at_home or named:
        return _kind((at_home or named)[0])
    # a name that got lost: told when there is one such layer in all
    return _kind(of_type[0]) if len(of_type) == 1 else None


def _kind(found: Any) -> str:
    """FullyConnected reports the type of its weights, so what it reads is asked of the node before."""
    precision = _info(found, "runtimePrecision")
    if _info(found, "layerType") == "FullyConnected":
        precision = _info(found.input_value(0).get_node(), "outputPrecisions")
    return "integer" if precision in ("u8", "i8") else "float"


def _names(found: Any) -> set[str]:
    names = _info(found, "originalLayersNames").split(",")
    return {name.removesuffix("_original").split("/WithoutBiases")[0].split("/Dequantization")[0] for name in names}


def _info(found: Any, key: str) -> str:
    info = found.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
