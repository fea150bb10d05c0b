"""Graphs as the bodies of control flow: the whole of a model becomes what an If, a Loop or a Scan runs."""

from collections.abc import Iterable
from typing import Protocol

import onnx
from onnx import TensorProto, helper


class InBody(Protocol):
    """own: whether constants stand in the body; else it captures them."""

    def __call__(self, model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto: ...


def in_branch(model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto:
    """The then_branch of an If; inputs are captured."""
    branch, around = _body(model, own=own)
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.output
    }
    other = onnx.GraphProto(name="other")
    for value in model.graph.output:
        kind, name = value.type.tensor_type.elem_type, f"{value.name}_else"
        zero = helper.make_tensor("zero", kind, [1] * ranks[value.name], [0])
        other.node.append(helper.make_node("Constant", [], [name], value=zero))
        other.output.append(helper.make_tensor_value_info(name, kind, None))
    results = _results(model.graph.output)
    names = [value.name for value in results]
    node = helper.make_node("If", ["condition"], names, "if", then_branch=branch, else_branch=other)
    return _model(model, node, ("condition", TensorProto.BOOL, []), model.graph.input, results, around)


def in_loop(model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto:
    """The body of a Loop; inputs are its states, each anew in each round."""
    body, around = _body(model, own=own)
    outputs = list(body.output)
    del body.output[:]
    body.input.extend(helper.make_tensor_value_info(*one) for one in (("i", TensorProto.INT64, []), GO))
    body.node.append(helper.make_node("Identity", ["go"], ["going"]))
    body.output.append(helper.make_tensor_value_info("going", TensorProto.BOOL, []))
    first = [_renamed(value, f"first_{value.name}") for value in model.graph.input]
    for value, start in zip(model.graph.input, first, strict=True):
        body.input.append(value)
        body.node.append(helper.make_node("Identity", [start.name], [f"next_{value.name}"]))
        body.output.append(_renamed(value, f"next_{value.name}"))
    body.output.extend(outputs)
    results = _results(outputs)
    names = [*(f"last_{value.name}" for value in model.graph.input), *(value.name for value in results)]
    node = helper.make_node("Loop", ["trips", "", *(value.name for value in first)], names, "loop", body=body)
    return _model(model, node, ("trips", TensorProto.INT64, []), first, results, around)


def in_scan(model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto:
    """The body of a Scan; inputs are captured."""
    body, around = _body(model, own=own)
    body.input.append(helper.make_tensor_value_info("step", TensorProto.FLOAT, []))
    results = _results(model.graph.output)
    names = [value.name for value in results]
    node = helper.make_node("Scan", ["steps"], names, "scan", num_scan_inputs=1, body=body)
    return _model(model, node, ("steps", TensorProto.FLOAT, [3]), model.graph.input, results, around)


IN_BODIES: tuple[InBody, ...] = (in_branch, in_loop, in_scan)
GO = ("go", TensorProto.BOOL, [])


def _body(model: onnx.ModelProto, *, own: bool) -> tuple[onnx.GraphProto, list[onnx.TensorProto]]:
    """The graph without its inputs, and the constants that stand around it."""
    body = onnx.GraphProto()
    body.CopyFrom(model.graph)
    del body.input[:]
    around = [] if own else list(body.initializer)
    if not own:
        del body.initializer[:]
    return body, around


def _renamed(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _results(outputs: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(f"{value.name}_out_of_it", value.type.tensor_type.elem_type, None)
        for value in outputs
    ]


def _model(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    steering: tuple[str, int, list[int]],
    inputs: Iterable[onnx.ValueInfoProto],
    results: list[onnx.ValueInfoProto],
    around: list[onnx.TensorProto],
) -> onnx.ModelProto:
    given = [helper.make_tensor_value_info(*steering), *inputs]
    graph = helper.make_graph([node], "net", given, results, around)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
