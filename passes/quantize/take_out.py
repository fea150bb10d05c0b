"""`TakeOutQuantizers`: a QDQ graph as the float network that it stands for."""

import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, add_initializer, discard, name_of, substitute
from passes.quantize.quantizers import QuantizedConstant, Quantizer, Quantizers
from passes.quantize.reading import clip_behind, ends_of


class TakeOutQuantizers(ir.passes.InPlacePass):
    """Leaves of each quantizer of an activation an Identity under the name of `Quantizer.value`, or a Clip with its
    bounds, and of each quantized constant a float initializer under the name of `QuantizedConstant.value`."""

    def __init__(self, found: Quantizers) -> None:
        self.found = found

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph, names = model.graph, FreshNames(model.graph)
        nodes = {name_of(value): node for node in graph for value in node.outputs}
        for constant in self.found.constants:
            make_initializer(graph, nodes[constant.value], constant)
        for quantizer in self.found.activations:
            take_out(graph, names, nodes[quantizer.value], quantizer)
        return ir.passes.PassResult(model, modified=True)


def make_initializer(graph: ir.Graph, node: ir.Node, constant: QuantizedConstant) -> None:
    """Puts a float initializer of `graph` in the place of the DequantizeLinear of a constant, also in a body."""
    old, before = node.outputs[0], None if node.inputs[0] is None else node.inputs[0].producer()
    tensor = ir.tensor(constant.numbers, name=constant.value)
    new = ir.val(constant.value, tensor.dtype, constant.numbers.shape, const_value=tensor)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    graph.register_initializer(new)
    if before is not None:
        discard(before)


def take_out(graph: ir.Graph, names: FreshNames, node: ir.Node, quantizer: Quantizer) -> None:
    """Takes a quantizer out, a QuantizeLinear of `graph` or of a body in it, as `TakeOutQuantizers` does."""
    source, clip = node.inputs[0], clip_behind(node)
    assert source is not None
    waiting = [node.outputs[0]]
    ends = list(ends_of(node))
    while waiting:
        value = waiting.pop()
        value.type = source.type
        for use in value.uses():
            waiting.extend(use.node.outputs if use.node not in ends else ())
    for end in ends:
        _replace(end, ir.node("Identity", [end.inputs[0]], name=name_of(end)), source)
    if clip is not None:
        _replace(clip, ir.node("Identity", [clip.inputs[0]], name=name_of(clip)), source)
    if quantizer.bounds == (None, None):
        kept = ir.node("Identity", [source], name=name_of(node))
    else:
        bounds = [
            None
            if bound is None
            else add_initializer(graph, names(f"{quantizer.value}_bound"), np.asarray(bound, np.float32))
            for bound in quantizer.bounds
        ]
        kept = ir.node("Clip", [source, *bounds], name=name_of(node))
    _replace(node, kept, source)


def _replace(old: ir.Node, new: ir.Node, like: ir.Value) -> None:
    assert old.graph is not None
    old.graph.insert_before(old, new)
    substitute(old.outputs[0], new.outputs[0])
    new.outputs[0].type = like.type
    discard(old)
