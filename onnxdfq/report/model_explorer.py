"""A graph for Model Explorer, coloured by what each layer costs.

The format is that of its JSON files, as the dataclasses of its package `ai-edge-model-explorer` write it
(`GraphCollection`): a viewer opens the file without an extension.
"""

from typing import Any

import onnx_ir as ir

from onnxdfq.report.diagnosis.result import Diagnosis, LayerReport
from passes.graph.editing import name_of, node_titles

# Background of a layer that costs the outputs so many decibels or less, when it alone is quantized.
COLOURS = ((15.0, "#e57373"), (25.0, "#ffb74d"), (35.0, "#fff176"))


def model_explorer(model: ir.Model, diagnosis: Diagnosis) -> dict[str, Any]:
    """The quantized graph as JSON has it.

    Args:
        model: As the file has it.
        diagnosis: Of that file.
    """
    titles, layers = node_titles(model.graph), {layer.name: layer for layer in diagnosis.layers}
    makers = {
        value: (str(place), str(slot))
        for place, node in enumerate(model.graph)
        for slot, value in enumerate(node.outputs)
    }
    nodes: list[dict[str, Any]] = []
    for place, value in enumerate(model.graph.inputs):
        makers[value] = (f"input {place}", "0")
        nodes.append({"id": f"input {place}", "label": "input", "attrs": [_attr("name", name_of(value))]})
    for place, node in enumerate(model.graph):
        layer = layers.get(titles[node])
        edges = [
            {"sourceNodeId": makers[value][0], "sourceNodeOutputId": makers[value][1], "targetNodeInputId": str(slot)}
            for slot, value in enumerate(node.inputs)
            if value in makers
        ]
        nodes.append(
            {
                "id": str(place),
                "label": node.op_type,
                "namespace": _namespace(titles[node]),
                "attrs": [_attr("name", titles[node]), *_attrs(layer)],
                "incomingEdges": edges,
                "style": {"backgroundColor": _colour(layer)},
            }
        )
    return {"label": "onnxdfq", "graphs": [{"id": "main", "nodes": nodes}]}


def _attrs(layer: LayerReport | None) -> list[dict[str, str]]:
    if layer is None:
        return []
    told = {
        "bits of weights": layer.weight_bits,
        "bits of activations": layer.activation_bits,
        "dB alone": layer.alone_db,
        "dB of all but it": layer.all_but_db,
        "dB are": "estimated" if layer.estimated else "",
        "kernel": layer.kernel,
        "why": layer.reason,
    }
    return [
        _attr(key, f"{value:.1f}" if isinstance(value, float) else str(value)) for key, value in told.items() if value
    ]


def _colour(layer: LayerReport | None) -> str:
    level = None if layer is None else layer.alone_db
    return "" if level is None else next((name for most, name in COLOURS if level <= most), "")


def _namespace(title: str) -> str:
    """The folders of a name such as `/layer1/conv/Conv`."""
    return "/".join(part for part in title.split("/")[:-1] if part)


def _attr(key: str, value: str) -> dict[str, str]:
    return {"key": key, "value": value}
