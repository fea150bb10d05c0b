"""What the layers of a network cost: bytes of their weights, operations on bits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.engine.feeds import Feeds
from passes.quantize.points import QuantPoints, WeightUse, data_input, find_quant_points
from passes.target.target import Target

SCALE_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operator with a weight, and the sizes that its cost follows from.

    node, weight: names of the operator and of the initializer. source: the value with quantization parameters that the
    layer reads; None for one that stays float. weights, scales: how many numbers. macs: multiplications, each with its
    addition, per image. only_scales: whether the weight holds one number per channel.
    """

    node: str
    weight: str
    source: str | None
    weights: int
    scales: int
    macs: int
    only_scales: bool = False

    def bits_at(self, width: int) -> int:
        """Bits of the weight, packed at so many a number, and of its scales as float32."""
        return self.weights * width + self.scales * SCALE_BITS


def read_layers(model: ir.Model, target: Target) -> tuple[Layer, ...]:
    """All layers that the target quantizes, in graph order.

    Args:
        model: Float. It is run once on a blank image, for the sizes of its values.
        target: Tells what is quantized, and along which axis.
    """
    points = find_quant_points(model, target)
    sizes = _numbers_per_image(model, points)
    nodes = {node.name: node for node in model.graph}
    active = set(points.activations)
    layers = []
    for use in points.weights:
        node, weight = nodes[use.node], model.graph.initializers[use.initializer]
        shape = tuple(weight.const_value.shape.numpy()) if weight.const_value is not None else ()
        source = data_input(node, use)
        root = points.same_as.get(source, source)
        layers.append(
            Layer(
                node=use.node,
                weight=use.initializer,
                source=root if root in active else None,
                weights=int(np.prod(shape)),
                scales=1 if use.axis is None or not target.per_channel_weights else shape[use.axis],
                macs=round(_macs(node, use, shape, sizes[source], sizes[node.outputs[0].name or ""])),
                only_scales=use.scales,
            )
        )
    return tuple(layers)


def size_bits(layers: Iterable[Layer], weight_bits: Mapping[str, int]) -> int:
    """Bits of all weights with their scales; weight_bits by node name."""
    return sum(layer.bits_at(weight_bits[layer.node]) for layer in layers)


def bit_operations(
    layers: Iterable[Layer], weight_bits: Mapping[str, int], activation_bits: Mapping[str | None, int]
) -> int:
    """Bit operations per image: over all layers, multiplications times bits of the weight times bits of the activation.

    Products of two activations (attention) are no part of it.

    Args:
        layers: What is summed over.
        weight_bits: By node name.
        activation_bits: By `Layer.source`.
    """
    return sum(layer.macs * weight_bits[layer.node] * activation_bits[layer.source] for layer in layers)


def _numbers_per_image(model: ir.Model, points: QuantPoints) -> dict[str, float]:
    """By value name, of what the layers read and give."""
    layers = {use.node: use for use in points.weights}
    names: dict[str, None] = {}
    for node in model.graph:
        if (use := layers.get(node.name or "")) is not None:
            names |= {data_input(node, use): None, node.outputs[0].name or "": None}
    graph = TorchGraph(model, outputs=list(names)).eval()
    feeds = Feeds(model)
    count = feeds.batch or 1
    with torch.no_grad():
        values = graph.stream(*(from_numpy(feeds.filled(name, count)) for name in graph.input_names))
        return {name: value.numel() / count for name, value in values}


def _macs(node: ir.Node, use: WeightUse, shape: tuple[int, ...], before: float, after: float) -> float:
    match node.op_type:
        case "Conv":  # (C_out, C_in / group, taps...): each output sums over the rest
            return after * float(np.prod(shape[1:]))
        case "ConvTranspose":  # (C_in, C_out / group, taps...): each input is spread over the rest
            return before * float(np.prod(shape[1:]))
        case _ if use.axis is None:
            return after * shape[0]
        case _:
            return after * shape[len(shape) - 2 if use.axis == len(shape) - 1 else len(shape) - 1]
