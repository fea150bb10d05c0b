"""Spatial correlation of activations without data: that of natural images, taken through the layers of a network.

Batch normalization tells mean and variance of every channel. Rounding a kernel of several taps also needs the
correlation between the positions that it covers. Derived for this project; not from a paper.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import factorial

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from passes.dfmpc.layer_pairs import has_weight
from passes.dfmpc.low_bit import Single, weight_rows
from passes.graph.editing import constant_value, is_op, name_of, rank
from passes.moments.moments import Moments, spreads
from passes.moments.moves import MOVES, spread_of_move
from passes.moments.spread import ABSCISSAE, WEIGHTS, Array, Spread

RADIUS = 4  # of the offsets that are kept; positions farther apart get the correlation of the offset at the edge
SIDE = 2 * RADIUS + 1
ROWS, COLUMNS = (axis.reshape(-1) for axis in np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1])
INDEPENDENT = ((ROWS == 0) & (COLUMNS == 0)).astype(np.float32)
LEAST_VARIANCE = 1e-24  # below it a channel is constant, and its correlation undefined
TERMS = 6  # of the Hermite series of an activation function
FIELD = 64  # side of the periodic field whose spectrum is the image's


def _at(rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.integer]:
    """The index of each offset along the last axis of a correlation; beyond RADIUS that of the nearest inside."""
    return np.asarray((np.clip(rows, -RADIUS, RADIUS) + RADIUS) * SIDE + np.clip(columns, -RADIUS, RADIUS) + RADIUS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Field:
    """The channels of a value as stationary random fields over the positions of a map.

    moments: (C,) each. correlation: (C, SIDE * SIDE) between a position and that at each offset (ROWS, COLUMNS).
    """

    moments: Moments
    correlation: Float32[Single, "c s"]

    def blocks(self, kernel: tuple[int, ...], dilations: tuple[int, ...]) -> Float32[Single, "c k k"]:
        """(C, K, K) covariance of the K positions of each channel that a kernel of these sizes (one or two) covers."""
        axes = [np.arange(size) * step for size, step in zip(kernel, dilations, strict=True)]
        grid = np.meshgrid(*axes, indexing="ij") if axes else [np.zeros(1, int)]
        positions = [axis.reshape(-1) for axis in grid]
        apart = [axis[:, None] - axis[None, :] for axis in positions]
        if len(apart) < 2:
            apart = [*apart, np.zeros_like(apart[0])]
        variance = np.square(self.moments.std).astype(np.float32)
        return np.asarray(self.correlation[:, _at(apart[0], apart[1])] * variance[:, None, None])


def natural_image_correlation() -> Float32[Single, "s"]:
    """(SIDE * SIDE,) correlation of an image whose amplitudes fall as 1 / frequency (D. J. Field, JOSA A 4, 1987)."""
    axis = np.fft.fftfreq(FIELD)
    frequency = np.hypot(axis[:, None], axis)
    frequency[0, 0] = frequency[0, 1]
    covariance = np.fft.ifft2(frequency**-2).real
    return np.asarray((covariance / covariance[0, 0])[ROWS, COLUMNS], np.float32)


def fields(model: ir.Model, moments: Mapping[str, Moments | Spread] | None = None) -> Iterator[tuple[str, Field]]:
    """The fields of all values of which `spreads` gives the moments, by value name, in graph order.

    Args:
        model: with or without its batch normalizations.
        moments: as `activation_moments` takes them.

    Graph inputs have `natural_image_correlation`. A convolution changes the correlation by the autocorrelation of its
    kernels, its input channels taken as independent; an activation function by its Hermite series, of a normal field;
    a sum is the mean of its terms, weighted by variance. Where no rule applies, positions are taken as independent.
    """
    image = natural_image_correlation()
    # of the normal variable whose function each value is: activation functions do not change it
    normal: dict[ir.Value, Single] = {}
    found: dict[ir.Value, Field] = {}
    by_name = {name_of(value): value for node in model.graph for value in node.outputs}
    by_name |= {name_of(value): value for value in model.graph.inputs}
    unread = {value: len(tuple(value.uses())) for value in by_name.values()}
    for name, spread in spreads(model, moments):
        value = by_name[name]
        node = value.producer()
        channels = len(spread.points)
        correlation = np.tile(image, (channels, 1)) if node is None else _normal_correlation(node, value, found, normal)
        if correlation is None or len(correlation) != channels:
            correlation = np.tile(INDEPENDENT, (channels, 1))
        normal[value] = correlation
        own = Moments(mean=spread.mean, std=spread.std, approximate=spread.approximate)
        found[value] = field = Field(moments=own, correlation=correlation_of_function(spread.points, correlation))
        yield name, field
        for read in () if node is None else dict.fromkeys(node.inputs):
            if read in unread:
                unread[read] -= list(node.inputs).count(read) if node is not None else 0
                if not unread[read]:
                    found.pop(read, None)
                    normal.pop(read, None)


def correlation_of_function(
    points: Float64[Array, "c k"], correlation: Float32[Single, "c s"]
) -> Float32[Single, "c s"]:
    """(C, S) correlation of the field f(z) from that of a normal field z: sum of h_n**2 r**n, h_n Hermite coefficients.

    Args:
        points: (C, K) f of each channel at ABSCISSAE.
        correlation: (C, S) r, of z at S offsets.
    """
    deviations = points - (points @ WEIGHTS)[:, None]
    basis = [np.ones_like(ABSCISSAE), ABSCISSAE]
    for n in range(2, TERMS + 1):
        basis.append(ABSCISSAE * basis[-1] - (n - 1) * basis[-2])
    norms = np.sqrt([float(factorial(n)) for n in range(1, TERMS + 1)])
    powers = np.square(deviations @ ((np.stack(basis[1:]) * WEIGHTS).T / norms))  # (C, TERMS)
    whole = np.square(deviations) @ WEIGHTS
    # what the series leaves is put into its last term, so that a position is fully correlated with itself
    powers[:, -1] += np.maximum(whole - powers.sum(axis=1), 0.0)
    shares = (powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-30)).astype(np.float32)
    result = shares[:, -1:] * correlation
    for n in range(TERMS - 2, -1, -1):
        result = (result + shares[:, n : n + 1]) * correlation
    dead = whole <= 1e-12 * np.square(points).max(axis=1)
    result[dead] = correlation[dead]
    return np.asarray(result)


def _normal_correlation(
    node: ir.Node, value: ir.Value, found: Mapping[ir.Value, Field], normal: Mapping[ir.Value, Single]
) -> Float32[Single, "c s"] | None:
    """Correlation of the normal variable whose function the output `value` of `node` is; None where no rule applies."""
    data = [read for read in node.inputs if read is not None and read in found]
    if has_weight(node):
        field = found[data[0]] if data else _image(node)
        return layer_correlation(node, field) if is_op(node, "Conv") and field is not None else None
    if not data:
        return None
    first = normal[data[0]]
    if is_op(node, "Add", "Sub", "Mul") and len(data) > 1:
        parts = [found[read] for read in data]
        if len({len(part.correlation) for part in parts}) > 1:
            return None
        shares = np.stack([np.square(part.moments.std) for part in parts]).astype(np.float32)
        shares /= np.maximum(shares.sum(axis=0), np.float32(1e-30))
        return np.asarray(sum(share[:, None] * part.correlation for share, part in zip(shares, parts, strict=True)))
    if is_op(node, "Concat"):
        return np.concatenate([normal[read] for read in data])
    if is_op(node, "Pad"):
        return _padded(node, first)
    if is_op(node, *MOVES):
        return _moved(node, value, first)
    if is_op(node, "AveragePool", "Conv", "MaxPool"):
        return _subsampled(first, node.attributes.get_ints("strides", ()))
    return first


def _image(node: ir.Node) -> Field | None:
    """The graph input that a convolution reads, all channels with mean 0 and deviation 1; None for another value."""
    data, weight = node.inputs[0], constant_value(node.inputs[1])
    if data is None or weight is None or not data.is_graph_input():
        return None
    one = np.ones(weight.shape[1] * node.attributes.get_int("group", 1))
    return Field(
        moments=Moments(mean=0 * one, std=one), correlation=np.tile(natural_image_correlation(), (len(one), 1))
    )


def layer_correlation(node: ir.Node, field: Field) -> Float32[Single, "o s"] | None:
    """(C_out, SIDE * SIDE) correlation of the output of a convolution of two axes, whose input is `field`; else None.

    The covariance at an offset is the sum over input channels and pairs of taps of w w' cov(x, x').
    """
    weight = constant_value(node.inputs[1])
    assert weight is not None
    if weight.ndim != 4:
        return None
    group, (outputs, inputs, *kernel) = node.attributes.get_int("group", 1), weight.shape
    dilations, strides = _pair(node, "dilations"), _pair(node, "strides")
    variance = np.square(field.moments.std).astype(np.float32)
    covariance = (field.correlation * variance[:, None]).reshape(group, inputs, -1)
    taps = np.ascontiguousarray(
        weight_rows(node, weight).reshape(group, outputs // group, inputs, -1).transpose(3, 0, 1, 2), np.float32
    )
    positions = np.stack([axis.reshape(-1) for axis in np.mgrid[: kernel[0], : kernel[1]]], axis=1)
    products: dict[tuple[int, int], Single] = {}
    for k, (row, column) in enumerate(positions):
        for j in range(k, len(positions)):
            apart = (int(positions[j][0] - row), int(positions[j][1] - column))
            product = taps[k] * taps[j]
            products[apart] = products[apart] + product if apart in products else product
    result = np.zeros((group, outputs // group, SIDE * SIDE), np.float32)
    for (down, right), product in products.items():
        rows, columns = ROWS * strides[0], COLUMNS * strides[1]
        pairs = covariance[:, :, _at(rows + down * dilations[0], columns + right * dilations[1])]
        if (down, right) != (0, 0):
            pairs = pairs + covariance[:, :, _at(rows - down * dilations[0], columns - right * dilations[1])]
        result += product @ pairs
    result = result.reshape(outputs, -1)
    alive = result[:, SIDE * SIDE // 2] > LEAST_VARIANCE
    # the correlation beyond RADIUS is an estimate that no field need have, so a result can exceed one
    result[alive] = np.clip(result[alive] / result[alive, SIDE * SIDE // 2, None], -1, 1)
    result[~alive] = INDEPENDENT
    return result


def _pair(node: ir.Node, name: str) -> tuple[int, int]:
    numbers = node.attributes.get_ints(name, (1, 1))
    return int(numbers[0]), int(numbers[1])


def _subsampled(correlation: Float32[Single, "c s"], strides: Sequence[int]) -> Float32[Single, "c s"]:
    if len(strides) != 2:
        return correlation
    return np.asarray(correlation[:, _at(ROWS * strides[0], COLUMNS * strides[1])])


def _padded(node: ir.Node, correlation: Float32[Single, "c s"]) -> Float32[Single, "_ s"] | None:
    amounts = constant_value(node.inputs[1])
    if amounts is None or amounts.size < 4:
        return None
    return np.pad(correlation, ((int(amounts[1]), int(amounts[1 + amounts.size // 2])), (0, 0)), mode="edge")


def _moved(node: ir.Node, value: ir.Value, correlation: Float32[Single, "c s"]) -> Float32[Single, "_ s"] | None:
    """The channels as a movement leaves them; a Slice with steps also leaves out positions."""
    index = list(node.outputs).index(value)
    results = spread_of_move(node, Spread(points=correlation.astype(np.float64), origin=""))
    result = results[index] if index < len(results) else None
    if not isinstance(result, Spread):
        return None
    return _subsampled(result.points.astype(np.float32), _strides_of_slice(node))


def _strides_of_slice(node: ir.Node) -> tuple[int, ...]:
    if not is_op(node, "Slice") or len(node.inputs) < 5:
        return ()
    axes, steps, axis_count = constant_value(node.inputs[3]), constant_value(node.inputs[4]), rank(node.inputs[0])
    if axes is None or steps is None or axis_count != 4:
        return ()
    strides = [1, 1, 1, 1]
    for axis, step in zip(axes, steps, strict=True):
        strides[int(axis)] = abs(int(step))
    return strides[2], strides[3]
