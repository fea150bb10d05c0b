"""`InsertQdq`: writes a QuantPlan into a graph. It computes no threshold; every number comes from the plan."""

import logging

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import FreshNames, add_initializer, initializer_array, name_of, set_constant_input
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.target.target import Target
from passes.write.biases import quantize_bias

logger = logging.getLogger(__name__)


class InsertQdq(ir.passes.InPlacePass):
    """Writes Quantize/Dequantize nodes into a float graph.

    1. A weight becomes an integer initializer, in the narrowest container of the target that holds its bits, and a
       DequantizeLinear that bears the weight's name.
    2. An activation v becomes v → QuantizeLinear → DequantizeLinear, and all consumers read the latter.
    3. A graph output keeps its name: what computed it gets the name `<output>_float`.
    4. Below the container's width a Clip on the integers keeps the range (Quantize–Clip–Dequantize, the form that
       integer kernels still accept).
    5. A float Clip that cuts the grid moves onto the integers, which frees its producer for fusion. Rounding is
       monotone, so rounding the bounds and clipping the integers gives what clipping and then rounding gave. Values
       that operators select from the clipped one (MaxPool, Reshape) are bounded as it is: a kernel's greatest input
       is read off the Clip in front of it.
    6. A constant that an element-wise operator combines with activations becomes integers in their container and a
       DequantizeLinear that bears its name.
    7. Biases that the plan corrects are replaced, or added where there was none; where the target wants integers, they
       become integers and a DequantizeLinear as well.

    Raises:
        ValueError: the target has no form for what the plan asks: a width, a sign, a zero point, a range.
    """

    def __init__(self, plan: QuantPlan, target: Target) -> None:
        self.plan = plan
        self.target = target

    def requires(self, model: ir.Model) -> None:
        """Every name of the plan must stand in the graph."""
        values = {value.name for node in model.graph for value in node.outputs} | {v.name for v in model.graph.inputs}
        missing = (set(self.plan.activations) | set(self.plan.same_as)) - values
        missing |= {*self.plan.weights, *self.plan.constants} - set(model.graph.initializers)
        missing |= set(self.plan.biases) - {node.name for node in model.graph}
        if missing:
            raise ir.passes.PreconditionError(f"the plan names what the graph lacks: {sorted(missing)}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph, names = model.graph, FreshNames(model.graph)
        for node in graph:
            if (bias := self.plan.biases.get(name_of(node))) is not None:
                set_constant_input(node, 2, bias, names, f"{node.name}.bias")
                logger.debug("the bias of %s is replaced", node.name)
        place = {node: place for place, node in enumerate(graph)}.__getitem__
        for name in self.plan.weights:
            container = ir.DataType[self.target.weight_container(self.plan.weights[name].bits).upper()]
            first = min((use.node for use in graph.initializers[name].uses()), key=place)
            _quantize_weight(graph, names, name, self.plan, container, before=first)
        for name, quant in self.plan.constants.items():
            first = min((use.node for use in graph.initializers[name].uses()), key=place)
            _quantize_constant(graph, names, name, quant, self.target, before=first)
        values = {value.name: value for node in graph for value in node.outputs} | {v.name: v for v in graph.inputs}
        parameters: dict[str, tuple[ir.Value, ir.Value]] = {}
        for name, quant in self.plan.activations.items():
            parameters[name] = _parameters(graph, names, name, quant, self.target)
            value = values[name] if quant.clip is None else _drop_clip(graph, values[name])
            _quantize_activation(graph, names, value, quant, parameters[name])
        for name, source in self.plan.same_as.items():
            _quantize_activation(
                graph, names, values[name], self.plan.activations[source].selection, parameters[source]
            )
        if self.target.bias != "float":
            for node in list(graph):
                quantize_bias(graph, names, node, self.plan.bias_quants.get(name_of(node)))
        return ir.passes.PassResult(model, modified=True)


def _quantize_weight(
    graph: ir.Graph, names: FreshNames, name: str, plan: QuantPlan, container: ir.DataType, *, before: ir.Node
) -> None:
    quant = plan.weights[name]
    integers: NDArray[np.integer] = (
        plan.integers[name] if name in plan.integers else plan.weight_integers(name, initializer_array(graph, name))
    )
    zero = np.zeros(quant.threshold.shape, container.numpy())
    _dequantize(graph, names, name, quant, integers.astype(zero.dtype, copy=False), zero, before=before)


def _quantize_constant(
    graph: ir.Graph, names: FreshNames, name: str, quant: TensorQuant, target: Target, *, before: ir.Node
) -> None:
    zero = _zero_point(name, quant, target)
    integers = (quant.integers(initializer_array(graph, name)) + int(zero)).astype(zero.dtype)
    _dequantize(graph, names, name, quant, integers, zero, before=before)


def _dequantize(
    graph: ir.Graph,
    names: FreshNames,
    name: str,
    quant: TensorQuant,
    integers: NDArray[np.integer],
    zero: NDArray[np.integer],
    *,
    before: ir.Node,
) -> None:
    """Puts integers and a DequantizeLinear in the place of a float initializer. before: its first reader."""
    value = graph.initializers[name]
    uses = list(value.uses())
    kept = value.is_graph_output()  # under its own name, in float
    if not kept:
        del graph.initializers[name]
    inputs = [
        add_initializer(graph, names(f"{name}_quantized"), integers),
        add_initializer(graph, names(f"{name}_scale"), quant.scale.astype(np.float32)),
        add_initializer(graph, names(f"{name}_zero_point"), zero),
    ]
    attributes = {} if quant.axis is None else {"axis": quant.axis}
    node = ir.node(
        "DequantizeLinear", inputs, attributes, name=names(f"{name}_dequantize"), metadata_props=_annotation(quant)
    )
    output = node.outputs[0]
    output.name = names(f"{name}_dequantized") if kept else name
    output.type, output.shape = value.type, value.shape
    graph.insert_before(before, node)
    for use in uses:
        use.node.replace_input_with(use.idx, output)
    logger.debug("the initializer %s becomes %s and a DequantizeLinear", name, integers.dtype)


def _quantize_activation(
    graph: ir.Graph, names: FreshNames, value: ir.Value, quant: TensorQuant, parameters: tuple[ir.Value, ir.Value]
) -> None:
    name, producer = name_of(value), value.producer()
    uses = list(value.uses())
    scale, zero_point = parameters
    nodes = [ir.node("QuantizeLinear", [value, scale, zero_point], name=names(f"{name}_quantize"))]
    nodes[0].outputs[0].name = names(f"{name}_quantized")
    assert zero_point.const_value is not None
    zero = zero_point.const_value.numpy()
    container = np.iinfo(zero.dtype)
    ends = _ends(quant, zero)
    if ends != [container.min, container.max]:
        bounds = [
            add_initializer(graph, names(f"{name}_{which}"), np.asarray(end, zero.dtype))
            for which, end in zip(("least", "greatest"), ends, strict=True)
        ]
        nodes.append(ir.node("Clip", [nodes[0].outputs[0], *bounds], name=names(f"{name}_clip")))
        nodes[1].outputs[0].name = names(f"{name}_clipped")
    nodes.append(
        ir.node(
            "DequantizeLinear",
            [nodes[-1].outputs[0], scale, zero_point],
            name=names(f"{name}_dequantize"),
            metadata_props=_annotation(quant),
        )
    )
    nodes[0].metadata_props.update(_annotation(quant))
    result = nodes[-1].outputs[0]
    result.name, result.type, result.shape = names(f"{name}_dequantized"), value.type, value.shape
    for node in nodes[:-1]:
        node.outputs[0].shape = value.shape
        node.outputs[0].type = zero_point.type
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for use in uses:
        use.node.replace_input_with(use.idx, result)
    # a graph input that is an output as well bears the name of both, and stays as it comes in
    if value.is_graph_output() and producer is not None:
        for index in [index for index, output in enumerate(graph.outputs) if output is value]:
            graph.outputs[index] = result
        value.name, result.name = names(f"{name}_float"), name
    logger.debug("%s is quantized: %s", name, ", ".join(node.op_type for node in nodes))


def _drop_clip(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Removes the float Clip that computes `value`; its input gets that name, and is quantized in its place."""
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
    logger.debug("%s %s goes: %s is clipped as integers", clip.op_type, clip.name, name)
    return source


def _parameters(
    graph: ir.Graph, names: FreshNames, name: str, quant: TensorQuant, target: Target
) -> tuple[ir.Value, ir.Value]:
    scale = add_initializer(graph, names(f"{name}_scale"), quant.scale.astype(np.float32))
    return scale, add_initializer(graph, names(f"{name}_zero_point"), _zero_point(name, quant, target))


def _zero_point(name: str, quant: TensorQuant, target: Target) -> NDArray[np.integer]:
    """The zero point, in the dtype of the container. Raises ValueError where the target has none for the grid."""
    container = target.activation_container(quant.bits, signed=quant.signed)
    if container == "none":
        raise ValueError(f"the plan has no sign at {name}, and {target.title} takes only grids with a sign")
    if quant.zero_point and target.zero_points != "any":
        raise ValueError(f"the plan begins below zero at {name}, and {target.title} has no zero points for that")
    kind = np.dtype(container)
    if quant.signed:
        zero = np.asarray(0 if kind.kind == "i" else 2 ** (8 * kind.itemsize - 1), kind)
    else:
        zero = np.asarray(np.iinfo(kind).min + quant.zero_point, kind)
    if target.small_ranges == "none" and _ends(quant, zero) != [np.iinfo(kind).min, np.iinfo(kind).max]:
        raise ValueError(f"the plan bounds {name} within {kind}, and {target.title} takes only the whole of it")
    return zero


def _ends(quant: TensorQuant, zero: NDArray[np.integer]) -> list[int]:
    """The least and the greatest integer of the grid, zero point included."""
    return [end + int(zero) for end in quant.range]


def _annotation(quant: TensorQuant) -> dict[str, str]:
    greatest = float(quant.threshold.max())
    return {"dfq.bits": f"{'s' if quant.signed else 'u'}{quant.bits}", "dfq.threshold": f"{greatest:g}"}
