"""Covariances of the inputs of layers, measured on noise instead of images.

Noise with the spectrum of natural images goes through the network, and every BatchNormalization normalizes it by the
statistics of the batch instead of the running ones. So each channel keeps the mean and deviation that it has on images,
layer by layer, while the weights correlate channels as they do on images. Derived for this project; not from a paper.

1. `probe_model` makes the network to run, by whatever runs ONNX. 2. `noise_fields` makes its input.
3. `input_covariances` takes its outputs.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, prod

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32, Float64, Shaped
from numpy.typing import NDArray

from passes.dfmpc.layer_pairs import has_weight, input_count
from passes.graph.affine import Array
from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    discard,
    drop_unused_initializers,
    is_constant,
    is_op,
    name_of,
    rank,
)

logger = logging.getLogger(__name__)

Single = NDArray[np.float32]

SHARE_IN_COMMON = 0.9  # of the variance of the noise that all colours share, as natural images share lightness
LARGEST_FILTER = 1200  # inputs; to round with a larger covariance takes too long
POSITIONS_PER_INPUT = 64  # samples of the covariance for each input of a filter


@dataclass(frozen=True, kw_only=True, eq=False)
class Covariance:
    """Mean and covariance of the inputs of a layer's filters: I/g channels of each group by K taps, padding included.

    mean: (g, I/g * K). matrix: (g, I/g * K, I/g * K).
    """

    mean: Float64[Array, "g d"]
    matrix: Float32[Single, "g d d"]


def probe_model(model: ir.Model) -> ir.Model:
    """A copy whose BatchNormalizations normalize by the batch, and whose outputs are the inputs of its layers."""
    copy = model.clone()
    names = FreshNames(copy.graph)
    for node in copy.graph:
        known = all(is_constant(value) for value in node.inputs[1:3]) and rank(node.inputs[0]) is not None
        if is_op(node, "BatchNormalization") and known:  # else it stays with the statistics that it has
            _by_the_batch(node, names)
            logger.debug("BatchNormalization %s of the probe normalizes by the batch", node.name)
    _return_layer_inputs(copy.graph, LARGEST_FILTER)
    return copy


def model_of_layer_inputs(model: ir.Model) -> ir.Model:
    """A copy whose outputs are the inputs of its layers, to run on images."""
    copy = model.clone()
    _return_layer_inputs(copy.graph)
    return copy


def _return_layer_inputs(graph: ir.Graph, largest: float = inf) -> None:
    layers = [node for node in graph if has_weight(node) and filter_size(node) <= largest]
    read = dict.fromkeys(value for node in layers if (value := node.inputs[0]) is not None)
    graph.outputs.clear()
    graph.outputs.extend(value for value in read if not value.is_graph_input())
    for node in reversed(graph):
        discard(node)
    drop_unused_initializers(graph)


def noise_fields(
    count: int, channels: int, size: tuple[int, int], seed: int
) -> Float32[Single, "{count} {channels} h w"]:
    """(count, channels, height, width) of noise whose amplitudes fall as 1 / frequency; mean about 0, deviation 1."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1]))
    frequency[0, 0] = 1 / max(size)

    def field(number: int) -> Float64[Array, "n {number} h w"]:
        white = random.normal(size=(count, number, *size))
        pink = np.fft.irfft2(np.fft.rfft2(white) / frequency, s=size)
        return np.asarray(pink / pink.std())

    return np.asarray(np.sqrt(SHARE_IN_COMMON) * field(1) + np.sqrt(1 - SHARE_IN_COMMON) * field(channels), np.float32)


def input_covariances(model: ir.Model, values: Mapping[str, Float32[Single, "..."]]) -> dict[str, Covariance]:
    """The covariance of the inputs of each layer, by layer name.

    Args:
        model: with the layers.
        values: value name → (N, C, ...), outputs of `probe_model` or `model_of_layer_inputs`.

    A ConvTranspose has none, nor has a layer whose filters have more than LARGEST_FILTER inputs.
    """
    found = {}
    for node in model.graph:
        value = values.get(name_of(node.inputs[0])) if node.inputs else None
        if value is None or not has_weight(node) or is_op(node, "ConvTranspose") or filter_size(node) > LARGEST_FILTER:
            continue
        if value.ndim < 2 or value.shape[1] != input_count(node):
            continue
        group = node.attributes.get_int("group", 1)
        patches = _patches(node, value).reshape(-1, group, filter_size(node)).swapaxes(0, 1)  # (g, P, D)
        mean = patches.mean(axis=1, keepdims=True)
        patches = patches - mean
        matrix = patches.swapaxes(1, 2) @ patches / np.float32(patches.shape[1])
        found[name_of(node)] = Covariance(mean=mean[:, 0].astype(np.float64), matrix=matrix)
    return found


def filter_size(node: ir.Node) -> int:
    """D = I/g * K, the number of inputs of one filter of a layer."""
    weight = constant_value(node.inputs[1])
    assert weight is not None
    return input_count(node) // node.attributes.get_int("group", 1) * prod(weight.shape[2:])


def _patches(node: ir.Node, value: Float32[Single, "n c ..."]) -> Float32[Single, "p d"]:
    """(P, C * K) the inputs of the layer at P positions, as many as POSITIONS_PER_INPUT asks for, or all."""
    if not is_op(node, "Conv"):
        return value.reshape(len(value), -1)
    weight = constant_value(node.inputs[1])
    assert weight is not None
    kernel = weight.shape[2:]
    axes = len(kernel)
    pads = node.attributes.get_ints("pads", (0,) * 2 * axes)
    dilations = node.attributes.get_ints("dilations", (1,) * axes)
    strides = node.attributes.get_ints("strides", (1,) * axes)
    each = max(prod(value.shape[2:]) // prod(strides), 1)
    value = value[: -(-POSITIONS_PER_INPUT * filter_size(node) // each)]
    padded = np.pad(value, ((0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)))
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, stride) for stride in strides))]
    every = (slice(None),) * (2 + axes)
    windows = windows[(*every, *(slice(None, None, dilation) for dilation in dilations))]  # (N, C, out..., k...)
    ordered = np.moveaxis(windows, 1, 1 + axes)  # (N, out..., C, k...)
    return ordered.reshape(-1, value.shape[1] * prod(kernel))


def _by_the_batch(node: ir.Node, names: FreshNames) -> None:
    """Replaces a BatchNormalization by arithmetic with the mean and variance of its input over all axes but axis 1."""
    graph, value = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph) and value is not None and value.shape is not None
    shape = (1, -1, *(1,) * (len(value.shape) - 2))
    scale, bias = (constant_value(parameter) for parameter in node.inputs[1:3])
    assert scale is not None and bias is not None
    axes = [axis for axis in range(len(value.shape)) if axis != 1]

    def constant(name: str, array: Shaped[NDArray[np.generic], "..."]) -> ir.Value:
        return add_initializer(graph, names(f"{node.name}.{name}"), array)

    over = constant("axes", np.asarray(axes, np.int64))
    epsilon = constant("epsilon", np.asarray(node.attributes.get_float("epsilon", 1e-5), np.float32))
    mean = ir.node("ReduceMean", [value, over], name=names(f"{node.name}_mean"))
    centred = ir.node("Sub", [value, mean.outputs[0]], name=names(f"{node.name}_centred"))
    square = ir.node("Mul", [centred.outputs[0]] * 2, name=names(f"{node.name}_square"))
    var = ir.node("ReduceMean", [square.outputs[0], over], name=names(f"{node.name}_var"))
    safe = ir.node("Add", [var.outputs[0], epsilon], name=names(f"{node.name}_safe"))
    deviation = ir.node("Sqrt", [safe.outputs[0]], name=names(f"{node.name}_deviation"))
    unit = ir.node("Div", [centred.outputs[0], deviation.outputs[0]], name=names(f"{node.name}_unit"))
    scaled = ir.node(
        "Mul", [unit.outputs[0], constant("gamma", scale.reshape(shape))], name=names(f"{node.name}_scaled")
    )
    moved = ir.node("Add", [scaled.outputs[0], constant("beta", bias.reshape(shape))], name=names(f"{node.name}_moved"))
    nodes = [mean, centred, square, var, safe, deviation, unit, scaled, moved]
    for made in nodes[:-1]:
        made.outputs[0].name = names(f"{made.name}_output")
    graph.insert_before(node, nodes)
    old, new = node.outputs[0], moved.outputs[0]
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.remove(node, safe=True)
