"""How good synthesised images are, without labels and without real images."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.images.images import Images
from onnxdfq.synthesis.losses import top_probability
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.statistics import Aggregate
from passes.graph.batch_norm import read_batch_norms

CONFIDENT = 0.9


@dataclass(frozen=True, kw_only=True)
class ImageQuality:
    """How well images stand for those that a network was trained with.

    bn_distance: of the whole set's statistics from the running ones, relative, squared; 0 is perfect (see
    `Targets.distance`). confident: share of images to which the float model gives a class with more than 0.9, None for
    a model that is no classifier. distances: node name of each BatchNormalization, in graph order → the part of
    bn_distance that is its own.
    """

    bn_distance: float
    confident: float | None
    distances: Mapping[str, float]


@torch.no_grad()
def evaluate_images(model: ir.Model, images: Images, *, batch_size: int = 64, device: str = "cpu") -> ImageQuality:
    """The quality of images by the model that they were made for, in float32.

    Args:
        model: Canonical, its BatchNormalizations intact.
        images: In the model's input units.
        batch_size: Images at once, where the model leaves it open.
        device: Where the network runs.

    Raises:
        NoBatchNorm: The model has none.
        ShapeError: The model has no input.
    """
    network = TappedNetwork(model, method="evaluate_images", device=device, precision="float32")
    moments, top = _seen(network, images, batch_size)
    confident = float((torch.cat(top)[: len(images)] > CONFIDENT).float().mean()) if top else None
    return ImageQuality(
        bn_distance=float(network.targets.distance(*moments)),
        confident=confident,
        distances=_by_layer(model, network, moments),
    )


@torch.no_grad()
def distances_by_layer(
    model: ir.Model, images: Images, *, batch_size: int = 64, device: str = "cpu"
) -> dict[str, float]:
    """Node name of each BatchNormalization, in graph order → `Targets.distances`; arguments as `evaluate_images` has.

    Raises:
        NoBatchNorm: The model has none.
    """
    network = TappedNetwork(model, method="distances_by_layer", device=device, precision="float32", outputs=())
    moments, _ = _seen(network, images, batch_size)
    return _by_layer(model, network, moments)


def _by_layer(model: ir.Model, network: TappedNetwork, moments: Tensor) -> dict[str, float]:
    names = [norm.node for norm in read_batch_norms(model)]
    return dict(zip(names, network.targets.distances(*moments), strict=True))


def _seen(network: TappedNetwork, images: Images, batch_size: int) -> tuple[Tensor, list[Tensor]]:
    """Moments of all images (2, S), and the greatest probability that each gets, by batches."""
    sizes = network.batch_sizes(len(images), batch_size)
    statistics = Aggregate(sizes, len(network.targets.mean), network.device)
    top: list[Tensor] = []
    start = 0
    for index, size in enumerate(sizes):
        rows = np.arange(start, start + size) % len(images)  # a model of one batch size needs full batches
        start += size
        arrays = {network.spec.name: images.pixels, **images.others}
        batch = {name: from_numpy(array[rows]).to(network.device) for name, array in arrays.items()}
        taps, outputs = network.forward(batch)
        statistics.store(index, network.moments(taps))
        if outputs and (found := top_probability(outputs[0])) is not None:
            top.append(found)
    return statistics.total(), top
