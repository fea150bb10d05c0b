"""`switch_in_bodies`: what bodies of If, Loop and Scan quantize, each with a switch that lies in the graph around."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from passes.graph.bodies import named_subgraphs, prefix_of, titled_nodes
from passes.graph.editing import FreshNames, add_initializer, name_of
from passes.quantize.quantizers import QuantizedConstant, Quantizer
from passes.quantize.reading import clip_behind, ends_of, read_quantizers
from passes.quantize.take_out import make_initializer, take_out


def switch_in_bodies(model: ir.Model) -> tuple[dict[str, tuple[Quantizer, str]], tuple[QuantizedConstant, ...]]:
    """Gives each quantizer in a body a switch, and makes each quantized constant there a float initializer.

    Nodes and values of bodies get names that tell whose they are, as `lint` has them, and their initializers lie in the
    graph around them.

    Args:
        model: Edited in place.

    Returns:
        Quantizers by the name of the value that they give, each with the name of an initializer: with 1 in it they
        quantize, with 0 they leave numbers as they are. And the constants.

    Raises:
        ValueError: As `read_quantizers` does, of a body.
    """
    graph, names = model.graph, FreshNames(model.graph)
    switched: dict[str, tuple[Quantizer, str]] = {}
    constants: list[QuantizedConstant] = []
    bodies = _bodies_with_names(graph, names)
    for body in bodies:
        for value in list(body.initializers.values()):
            _compute_output(body, names, value)
            del body.initializers[name_of(value)]
            graph.register_initializer(value)
    for body in bodies:
        found, makers = read_quantizers(body), {name_of(value): node for node in body for value in node.outputs}
        for constant in found.constants:
            _compute_output(body, names, makers[constant.value].outputs[0])
            make_initializer(graph, makers[constant.value], constant)
        for quantizer in found.activations:
            switch = add_initializer(graph, names(f"{quantizer.value}_switch"), np.ones((), np.float32))
            _switch(graph, names, makers[quantizer.value], quantizer, switch)
            switched[quantizer.value] = quantizer, name_of(switch)
        constants.extend(found.constants)
    return switched, tuple(constants)


def _bodies_with_names(graph: ir.Graph, names: FreshNames) -> list[ir.Graph]:
    """All bodies in a graph, each before those in it, with what is in them renamed."""
    bodies: list[ir.Graph] = []
    for prefix, title, node in list(titled_nodes(graph)):
        if prefix:
            node.name = title
            _prefix(node.outputs, prefix, names)
        for attribute, body in named_subgraphs(node):
            _prefix((*body.inputs, *body.initializers.values()), prefix_of(title, attribute), names)
            bodies.append(body)
    return bodies


def _prefix(values: Iterable[ir.Value], prefix: str, names: FreshNames) -> None:
    for value in values:
        if value.name and not value.name.startswith(prefix):
            value.name = names(prefix + value.name)


def _compute_output(body: ir.Graph, names: FreshNames, value: ir.Value) -> None:
    """Puts an Identity behind a value that leaves its body: ONNX Runtime wants what leaves one computed there."""
    for place, output in enumerate(body.outputs):
        if output is value:
            handed = ir.node("Identity", [value], name=names(f"{name_of(value)}_Identity"))
            handed.outputs[0].name = names(f"{name_of(value)}_output")
            handed.outputs[0].type, handed.outputs[0].shape = value.type, value.shape
            body.append(handed)
            body.outputs[place] = handed.outputs[0]


def _switch(around: ir.Graph, names: FreshNames, node: ir.Node, quantizer: Quantizer, switch: ir.Value) -> None:
    """Takes a quantizer out, and puts a copy of it beside what is left, and a Where that chooses.

    around: the graph of the model.
    """
    source, clip, end, body = node.inputs[0], clip_behind(node), next(ends_of(node)), node.graph
    assert body is not None
    kind = end.outputs[0].type
    copies, value = [], source
    for one in filter(None, (node, clip, end)):
        copies.append(ir.node(one.op_type, [value, *one.inputs[1:]], one.attributes, domain=one.domain))
        value = copies[-1].outputs[0]
        value.type = one.outputs[0].type
    take_out(around, names, node, quantizer)
    plain = next(one.outputs[0] for one in body if name_of(one.outputs[0]) == quantizer.value)
    cast = ir.node("Cast", [switch], {"to": ir.DataType.BOOL})
    chosen = ir.node("Where", [cast.outputs[0], value, plain])
    chosen.outputs[0].type = kind
    for one in (*copies, cast, chosen):
        one.name = names(f"{quantizer.value}_{one.op_type}")
        one.outputs[0].name = names(f"{one.name}_output")
    plain.replace_all_uses_with(chosen.outputs[0])
    chosen.replace_input_with(2, plain)
    kept = plain.producer()
    assert kept is not None
    body.insert_after(kept, [*copies, cast, chosen])
    plain.name, chosen.outputs[0].name = names(f"{quantizer.value}_plain"), quantizer.value
