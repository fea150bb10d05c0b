"""`InsertQdq`: carries out a QuantPlan. It computes no threshold; every number comes from the plan."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.power_of_two import integer_range
from passes.quant_plan import QuantPlan, TensorQuant
from passes.target import Target


class InsertQdq(ir.passes.InPlacePass):
    """Writes Quantize/Dequantize nodes into a float graph.

    1. A weight becomes an integer initializer and a DequantizeLinear that bears the weight's name.
    2. An activation v becomes v → QuantizeLinear → DequantizeLinear, and all consumers read the latter.
    3. A graph output keeps its name: what computed it gets the name `<output>_float`.
    4. Below the container's width a Clip on the integers keeps the range (Quantize–Clip–Dequantize, the form that
       integer kernels still accept).
    5. A float Clip whose bounds are steps of the grid moves onto the integers, which frees its producer for fusion.
    6. Biases that the plan corrects are replaced, or added where there was none.
    """

    def __init__(self, plan: QuantPlan, target: Target) -> None:
        self.plan = plan
        self.target = target

    def requires(self, model: ir.Model) -> None:
        """Every name of the plan must stand in the graph."""
        values = {value.name for node in model.graph for value in node.outputs} | {v.name for v in model.graph.inputs}
        missing = (set(self.plan.activations) | set(self.plan.same_as)) - values
        missing |= set(self.plan.weights) - set(model.graph.initializers)
        missing |= set(self.plan.biases) - {node.name for node in model.graph}
        if missing:
            raise ir.passes.PreconditionError(f"the plan names what the graph lacks: {sorted(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph = model.graph
        for node in list(graph):
            if (bias := self.plan.biases.get(node.name or "")) is not None:
                _set_bias(graph, node, bias)
        for name, quant in self.plan.weights.items():
            _quantize_weight(graph, name, quant)
        values = {value.name: value for node in graph for value in node.outputs} | {v.name: v for v in graph.inputs}
        quants = dict(self.plan.activations)
        quants |= {name: self.plan.activations[source] for name, source in self.plan.same_as.items()}
        parameters: dict[str, tuple[ir.Value, ir.Value]] = {}
        for name, quant in quants.items():
            source = self.plan.same_as.get(name, name)
            if source not in parameters:
                parameters[source] = _parameters(graph, source, quant)
            _quantize_activation(graph, values[name], quant, parameters[source])
        if len(model.graph.opset_imports) and model.graph.opset_imports.get("", 0) < self.target.opset:
            model.graph.opset_imports[""] = self.target.opset
        return ir.passes.PassResult(model, modified=True)


def _quantize_weight(graph: ir.Graph, name: str, quant: TensorQuant) -> None:
    weight = graph.initializers[name]
    if weight.const_value is None:
        raise ValueError(f"the initializer {name} has no data")
    integers = quant.integers(weight.const_value.numpy()).astype(np.int8)
    zero = np.zeros(quant.threshold.shape, np.int8)
    uses = list(weight.uses())
    first = min((use.node for use in uses), key=list(graph).index)
    del graph.initializers[name]
    inputs = [
        _initializer(graph, f"{name}_quantized", integers),
        _initializer(graph, f"{name}_scale", quant.scale.astype(np.float32)),
        _initializer(graph, f"{name}_zero_point", zero),
    ]
    attributes = {} if quant.axis is None else {"axis": quant.axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}_dequantize", metadata_props=_annotation(quant))
    output = node.outputs[0]
    output.name, output.type, output.shape = name, weight.type, weight.shape
    graph.insert_before(first, node)
    for use in uses:
        use.node.replace_input_with(use.idx, output)


def _quantize_activation(
    graph: ir.Graph, value: ir.Value, quant: TensorQuant, parameters: tuple[ir.Value, ir.Value]
) -> None:
    if quant.clip is not None:
        value = _drop_clip(graph, value)
    name, producer = value.name or "", value.producer()
    uses = list(value.uses())
    scale, zero_point = parameters
    nodes = [ir.node("QuantizeLinear", [value, scale, zero_point], name=f"{name}_quantize")]
    nodes[0].outputs[0].name = f"{name}_quantized"
    low, high = quant.range
    if (low, high) != integer_range(8 if quant.bits <= 8 else 16, signed=quant.signed):
        shift = _zero_point(quant)
        bounds = [
            _initializer(graph, f"{name}_{end}", np.asarray(bound + int(shift), shift.dtype))
            for end, bound in (("least", low), ("greatest", high))
        ]
        nodes.append(ir.node("Clip", [nodes[0].outputs[0], *bounds], name=f"{name}_clip"))
        nodes[1].outputs[0].name = f"{name}_clipped"
    nodes.append(
        ir.node(
            "DequantizeLinear",
            [nodes[-1].outputs[0], scale, zero_point],
            name=f"{name}_dequantize",
            metadata_props=_annotation(quant),
        )
    )
    nodes[0].metadata_props.update(_annotation(quant))
    result = nodes[-1].outputs[0]
    result.name, result.type, result.shape = f"{name}_dequantized", value.type, value.shape
    for node in nodes[:-1]:
        node.outputs[0].shape = value.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(_zero_point(quant).dtype))
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    if value.is_graph_output():
        index = list(graph.outputs).index(value)
        graph.outputs[index] = result
        value.name, result.name = f"{name}_float", name


def _drop_clip(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Take the float Clip that computes `value` out; its input, under the Clip's output name, is quantized instead."""
    clip = value.producer()
    if clip is None or clip.op_type not in ("Clip", "Relu") or clip.inputs[0] is None:
        raise ValueError(f"the plan moves a Clip onto the integers at {value.name}, which no Clip computes")
    source = clip.inputs[0]
    name, source_name = value.name, source.name
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, source)
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = source
    graph.remove(clip, safe=True)
    value.name, source.name = source_name, name
    return source


def _set_bias(graph: ir.Graph, node: ir.Node, bias: NDArray[np.float32]) -> None:
    value = _initializer(graph, f"{node.name}_corrected_bias", bias)
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    old = node.inputs[2]
    node.replace_input_with(2, value)
    if old is not None and not old.uses() and old.is_initializer():
        name = old.name or ""
        del graph.initializers[name]
        del graph.initializers[value.name or ""]
        value.name = name
        graph.register_initializer(value)


def _parameters(graph: ir.Graph, name: str, quant: TensorQuant) -> tuple[ir.Value, ir.Value]:
    scale = _initializer(graph, f"{name}_scale", quant.scale.astype(np.float32))
    return scale, _initializer(graph, f"{name}_zero_point", _zero_point(quant))


def _zero_point(quant: TensorQuant) -> NDArray[np.unsignedinteger]:
    # Signed activations sit in the unsigned container with their zero in the middle: ONNX Runtime makes a Conv integer
    # only if its input and output share one type, and a Relu vanishes only in front of an unsigned zero point of 0.
    dtype = np.uint8 if quant.bits <= 8 else np.uint16
    return np.asarray(np.iinfo(dtype).max // 2 + 1 if quant.signed else 0, dtype)


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.register_initializer(value)
    return value


def _annotation(quant: TensorQuant) -> dict[str, str]:
    greatest = float(quant.threshold.max())
    return {"dfq.bits": f"{'s' if quant.signed else 'u'}{quant.bits}", "dfq.threshold": f"{greatest:g}"}
