"""How what a layer reads hangs together, on samples: what of a channel others can make up for."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.samples import SamplesLike
from onnxdfq.progress import Progress
from onnxdfq.pruning.sums import MOST_FEATURES, Sums, add_batch, constant_weight, empty_sums
from passes.graph.editing import name_of

BATCH_SIZE = 16
IMAGES = 128  # the first; with 256 the choice for ResNet-20 is no better


def input_covariances(
    model: ir.Model, samples: SamplesLike, *, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Float64[NDArray[np.float64], "g f f"]]:
    """Of every layer with constant weights and not too many inputs.

    Args:
        model: float. It is only read.
        samples: in the model's input units, of which the first 128 are used.
        device: where the network runs.
        progress: is told of each batch.

    Returns:
        Layer → covariances of the F = I/g K features that its filters multiply with, for each of g groups.
    """
    layers = {name_of(node): node for node in model.graph if constant_weight(node) is not None}
    sums = {name: own for name, node in layers.items() if (own := _empty(node, device)) is not None}
    layers = {name: layers[name] for name in sums}
    taps = dict.fromkeys(name_of(value) for node in layers.values() for value in (node.inputs[0], node.outputs[0]))
    if not layers:
        return {}
    by_output = {name_of(node.outputs[0]): node for node in layers.values()}
    graph = TorchGraph(model, outputs=list(taps)).to(device).eval()
    feeds = Feeds(model)
    count = max(IMAGES, feeds.batch or 1)
    samples = samples[:count]
    with torch.no_grad():
        for number, batch in enumerate(feeds.batches(feeds.names, samples, BATCH_SIZE, device)):
            if progress is not None:
                progress(number * BATCH_SIZE, len(samples), "")
            given = dict(zip(feeds.names, batch, strict=True))
            readers = Counter(name_of(node.inputs[0]) for node in layers.values())
            values: dict[str, Tensor] = {}
            for name, value in graph.stream(*(given[each] for each in graph.input_names)):
                if name in readers:
                    values[name] = value
                if (node := by_output.get(name)) is not None:
                    source = name_of(node.inputs[0])
                    add_batch(node, values[source], value, sums[name_of(node)])
                    readers[source] -= 1
                    if not readers[source]:
                        del values[source]
    return {name: own.moments().xx for name, own in sums.items()}


def _empty(node: ir.Node, device: str) -> Sums | None:
    weight = constant_weight(node)
    sums = None if weight is None else empty_sums(node, weight, device)
    return sums if sums is None or sums.x.shape[1] <= MOST_FEATURES else None
