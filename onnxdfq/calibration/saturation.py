"""Where an activation function no longer changes: Gelu, Swish and their kind are next to constant far below zero.

What lies there may be cut off, and the integers that stood for it are free for the rest.
"""

import onnx_ir as ir
import torch

from onnxdfq.engine import TorchGraph
from passes.graph.editing import is_op, sole_consumer
from passes.graph.operators import CURVES


def function_behind(model: ir.Model, value: ir.Value) -> TorchGraph | None:
    """The element-wise function that alone reads `value`: f(x), or x · f(x), as a graph of one input and one output.

    None where something else reads it, too, or the reader is no such function. Any shape may be given to the graph.
    """
    reader = sole_consumer(value)
    if reader is None:
        reader = _gate(value)
    elif not _is_curve(reader):
        reader = None
    if reader is None:
        return None
    return TorchGraph(model, inputs=[value.name or ""], outputs=[reader.outputs[0].name or ""])


def saturation_zero_point(function: TorchGraph, scale: float, bits: int) -> int | None:
    """The least zero point of a grid without sign, below which `function` changes by no more than half a scale.

    Args:
        function: Element-wise, of one input and one output.
        scale: Of the grid, in the unit of the function's input.
        bits: Of the grid.

    Returns:
        An even number; None where the function still changes below 2**bits - 2 scales under zero, the lowest that the
        grid can begin. It is followed down to four times as far.
    """
    zero_points = torch.arange(2, 2**bits, 2)
    with torch.no_grad():
        (curve,) = function(-scale * torch.arange(2, 2 ** (bits + 2), 2, dtype=torch.float32))
    below = curve.flip(0)
    greatest, least = below.cummax(0).values.flip(0), below.cummin(0).values.flip(0)
    still = (torch.maximum(greatest - curve, curve - least) <= scale / 2)[: len(zero_points)]
    return int(zero_points[still.int().argmax()]) if still.any() else None


def _is_curve(node: ir.Node) -> bool:
    return node.op_type in CURVES and len(node.inputs) == 1


def _gate(value: ir.Value) -> ir.Node | None:
    """The Mul of x · f(x)."""
    nodes = {use.node for use in value.uses()}
    product = next((node for node in nodes if is_op(node, "Mul")), None)
    curve = next(filter(_is_curve, nodes), None)
    if len(nodes) != 2 or product is None or curve is None or value.is_graph_output():
        return None
    joined = curve.outputs[0]
    return product if sole_consumer(joined) is product and set(product.inputs) == {value, joined} else None
