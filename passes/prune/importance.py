"""`Importance`: what the layers that read a channel lose when it goes, after the rest has made up for it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Int
from numpy.typing import NDArray

from passes.graph.affine import batch_norm_affine, scale_outputs
from passes.graph.editing import as_float64, constant_value, is_op, name_of, sole_consumer
from passes.graph.filters import to_filters
from passes.moments.moments import activation_moments
from passes.prune.tracing import Held, Traced
from passes.prune.zero_weights import input_axis

Array = NDArray[np.float64]
Covariances = Mapping[str, Float64[Array, "g f f"]]
"""Layer → covariances of what its filters multiply with, for each of g groups; features in the order of the weight."""

RIDGE = 0.01  # of a feature's mean variance, so that a covariance of few samples has an inverse


@dataclass(eq=False)
class _Reader:
    """A layer, or one group of it, and the channels that it reads.

    roots: (C,) their classes. rows: (C, O, K) the weights that meet each, in units of the output behind its
    BatchNormalization. variance: (C,) of the channels. inverse: of the covariance of all C K features, and None where
    they are taken as independent.
    """

    roots: Int[NDArray[np.int64], "c"]
    rows: Float64[Array, "c o k"]
    variance: Float64[Array, "c"]
    inverse: Float64[Array, "c k c k"] | None

    def losses(self) -> Float64[Array, "c"]:
        """The deviation that the output loses by each channel alone, over all O outputs."""
        if self.inverse is None:
            energies = np.square(self.rows).sum(axis=(1, 2)) * self.variance
        else:
            every = np.arange(len(self.roots))
            blocks = np.linalg.inv(self.inverse[every, :, every, :])
            energies = ((self.rows @ blocks) * self.rows).sum(axis=(1, 2))
        return np.asarray(np.sqrt(np.maximum(energies, 0)))

    def without(self, channel: int) -> "_Reader":
        """The same after the others have taken over what they can of one channel."""
        if self.inverse is None:
            return self
        own = np.linalg.inv(self.inverse[channel, :, channel, :])
        column = self.inverse[:, :, channel, :]  # (C, K, K)
        rows = self.rows - np.einsum("om,ckm->cok", self.rows[channel] @ own, column)
        inverse = self.inverse - np.einsum("ckm,dlm->ckdl", column @ own, column, optimize=True)
        rows[channel] = 0
        inverse[channel] = inverse[:, :, channel] = 0
        inverse[channel, :, channel, :] = np.eye(inverse.shape[1])
        return replace(self, rows=rows, inverse=inverse)


class Importance:
    """The order in which channels go.

    Args:
        model: of which `found` was traced, its BatchNormalizations in place or folded. It is only read.
        found: its channels.
        covariances: of layers on samples. Of other layers the features are taken as independent, of variances that
            BatchNormalizations tell, or of 1 where none does.

    A channel is worth the sum, over the layers that read it, of the deviation that their outputs lose for good: with
    weights W and the inverse H of the features' covariance it is |W_c (H_cc)⁻¹ W_cᵀ|^½, where least squares on the
    other channels has taken over what it can; the squares of one channel's own part where features are independent.

    Source: Hassibi and Stork, Optimal Brain Surgeon, 1993, for whole channels; scaled by the BatchNormalization behind.
    """

    def __init__(self, model: ir.Model, found: Traced, covariances: Covariances) -> None:
        moments = activation_moments(model)
        self._readers: list[_Reader] = []
        for held in found.held:
            if held.slot == 1 and is_op(held.node, "Conv", "ConvTranspose", "Gemm", "MatMul"):
                known = moments.get(name_of(held.node.inputs[0]))
                variance = None if known is None else np.square(known.std)
                self._readers.extend(_readers(held, found, variance, covariances.get(name_of(held.node))))

    def losses(self) -> dict[int, float]:
        """Class → what it is worth as long as all others stay; one that no layer reads is absent."""
        return _losses(self._readers)

    def order(self, free: Collection[int], most: int) -> list[int]:
        """So many of the classes, or all, the least worth first: each is judged after those before it are gone."""
        left = set(free)
        order: list[int] = []
        readers = [reader for reader in self._readers if left.intersection(reader.roots.tolist())]
        losses = _losses(readers)
        learns = any(reader.inverse is not None for reader in readers)
        while left and len(order) < most:
            least = min(left, key=lambda root: (losses.get(root, 0.0), root))
            left.remove(least)
            order.append(least)
            if learns:
                readers = list(_after(readers, (least,)))
                losses = _losses(readers)
        return order

    def without(self, gone: Iterable[int]) -> "Importance":
        """The same after these classes are gone."""
        after = object.__new__(Importance)
        after._readers = list(_after(self._readers, gone))
        return after


def _losses(readers: Iterable[_Reader]) -> dict[int, float]:
    losses: dict[int, float] = {}
    for reader in readers:
        for root, loss in zip(reader.roots.tolist(), reader.losses().tolist(), strict=True):
            losses[root] = losses.get(root, 0.0) + loss
    return losses


def _after(readers: Iterable[_Reader], gone: Iterable[int]) -> Iterator[_Reader]:
    gone = list(gone)
    for reader in readers:
        for channel in np.flatnonzero(np.isin(reader.roots, gone)).tolist():
            reader = reader.without(channel)
        yield reader


def _readers(
    held: Held, found: Traced, variance: Float64[Array, "i"] | None, covariance: Float64[Array, "g f f"] | None
) -> list[_Reader]:
    """One for each group of the layer; none where the axis is that of its outputs, or where each channel is read by
    what goes with it."""
    node, constant = held.node, constant_value(held.node.inputs[1])
    assert constant is not None
    weight = as_float64(constant)
    filters = to_filters(node, _normalized(node, weight))  # (g, O/g, I/g, K)
    groups, count = filters.shape[0], filters.shape[2]
    if held.axis != input_axis(node) % weight.ndim or (groups > 1 and count == 1):
        return []
    roots = np.resize(found.classes.roots(held.atoms), (groups, count))  # of a grouped Conv those of one group are held
    variances = _spread(variance, groups * count).reshape(groups, count)
    return [
        _Reader(
            roots=roots[group],
            rows=rows,
            variance=variances[group],
            inverse=None if covariance is None else _inverse(covariance[group], count, rows.shape[2]),
        )
        for group, rows in enumerate(filters.swapaxes(1, 2))
    ]


def _normalized(node: ir.Node, weight: Float64[Array, "*shape"]) -> Float64[Array, "*shape"]:
    """The weight with the scale of the BatchNormalization that alone reads the layer."""
    norm = sole_consumer(node.outputs[0])
    affine = batch_norm_affine(norm) if norm is not None and is_op(norm, "BatchNormalization") else None
    return weight if affine is None or is_op(node, "MatMul") else scale_outputs(node, weight, affine.scale)


def _spread(variance: Float64[Array, "i"] | None, features: int) -> Float64[Array, "{features}"]:
    """Of each feature: behind Flatten a channel has several."""
    if variance is None or features % variance.size:
        return np.ones(features)
    return np.repeat(variance, features // variance.size)


def _inverse(covariance: Float64[Array, "f f"], count: int, taps: int) -> Float64[Array, "c k c k"]:
    pull = RIDGE * float(np.trace(covariance)) / len(covariance) or 1.0
    inverse = np.linalg.inv(covariance + pull * np.eye(len(covariance)))
    return np.asarray(inverse, np.float64).reshape(count, taps, count, taps)
