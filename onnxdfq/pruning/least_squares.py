"""Least squares layer by layer: the weights that remain give what the whole layer gave, as well as they can."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Bool, Float64
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.samples import SamplesLike
from onnxdfq.progress import Progress
from onnxdfq.pruning.moments import shift_outputs
from passes.graph.affine import constant_bias, output_channels, write_layer
from passes.graph.channel_paths import layer_weight
from passes.graph.editing import FreshNames, is_op, name_of
from passes.prune.plan import ChannelPlan, ZeroPlan

logger = logging.getLogger(__name__)

RIDGE = 0.1  # the best of 0.1, 0.01, 0.001 on synthesised images that were held back
BATCH_SIZE = 32
UNFOLDED = 2**26  # bytes of the patches that lie in memory together
TINY = 1e-30  # features that never move are left alone by it
Array = NDArray[np.float64]


@dataclass(kw_only=True)
class _Sums:
    """Of n positions: sums of x, y, x xᵀ and x yᵀ, for each of g groups. x: (g, F), y: (g, O/g)."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def zero(cls, groups: int, features: int, outputs: int, device: str) -> "_Sums":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(
            count=0,
            x=zeros(groups, features),
            y=zeros(groups, outputs),
            xx=zeros(groups, features, features),
            xy=zeros(groups, features, outputs),
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """Positions x (g, F, P) with what is wanted of them, y (g, O/g, P)."""
        self.count += x.shape[2]
        self.x += x.sum(dim=2, dtype=torch.float64)
        self.y += y.sum(dim=2, dtype=torch.float64)
        self.xx += (x @ x.mT).double()
        self.xy += (x @ y.mT).double()

    def centred(self) -> tuple[Array, Array, Array, Array]:
        """Means of x (g, F) and y (g, O/g), covariances of x (g, F, F) and of x with y (g, F, O/g)."""
        x, y = self.x / self.count, self.y / self.count
        xx = self.xx / self.count - x[:, :, None] * x[:, None, :]
        xy = self.xy / self.count - x[:, :, None] * y[:, None, :]
        return x.cpu().numpy(), y.cpu().numpy(), xx.cpu().numpy(), xy.cpu().numpy()


def fit_layers(
    pruned: ir.Model,
    original: ir.Model,
    plan: ChannelPlan | ZeroPlan,
    samples: SamplesLike,
    *,
    ridge: float = RIDGE,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """New weights and biases for the layers of a pruned network, in graph order, in place.

    Args:
        pruned: the network after the plan; its values keep the names that they have in `original`.
        original: the network before. It is only read.
        plan: that leads from one to the other; zeros of a plan of weights stay zero.
        samples: in the model's input units.
        ridge: how much of a feature's mean variance pulls the weights to what they were, so that directions which the
            samples hardly show stay as they are.
        device: where networks run.
        progress: is told of each layer.

    Returns:
        The layers that are left as they are, because their operator is not fitted.

    Each layer reads what the layers before it, fitted already, give: min over W, b of
    |Y - X W - b|² + rho |W - W0|², X of the pruned network, Y of the original. On a mask every output has equations of
    its own.

    Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, arXiv 1707.06168, Eq. 3, whose
    regularisation pulls to zero; here it pulls to the weights as they were.
    """
    changed = list(_changed_layers(pruned, plan))
    left = []
    for number, node in enumerate(changed):
        if progress is not None:
            progress(number, len(changed), name_of(node))
        if _is_fitted(node):
            _fit(node, pruned, original, plan, samples, ridge, device)
        else:
            left.append(name_of(node))
    return tuple(left)


def _changed_layers(pruned: ir.Model, plan: ChannelPlan | ZeroPlan) -> Iterator[ir.Node]:
    """The layers that give something else than before the plan, in graph order."""
    other: set[ir.Value] = set()
    for node in pruned.graph:
        if isinstance(plan, ZeroPlan):
            mask = plan.masks.get(name_of(node))
            loses = mask is not None and not mask.all()
        else:
            loses = layer_weight(node) is not None and name_of(node.inputs[0]) in plan.values
        if loses or any(value in other for value in node.inputs):
            other.update(node.outputs)
            if layer_weight(node) is not None:
                yield node


def _is_fitted(node: ir.Node) -> bool:
    weight = layer_weight(node)
    if weight is None or (len(node.inputs) > 2 and constant_bias(node, output_channels(node, weight)) is None):
        return False
    plain = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return is_op(node, "Gemm") or (is_op(node, "Conv") and weight.ndim in (3, 4) and plain)


def _fit(
    node: ir.Node,
    pruned: ir.Model,
    original: ir.Model,
    plan: ChannelPlan | ZeroPlan,
    samples: SamplesLike,
    ridge: float,
    device: str,
) -> None:
    weight = layer_weight(node)
    assert weight is not None
    groups, rows = node.attributes.get_int("group", 1), _rows(node, weight)  # (g, O/g, F)
    sums = _Sums.zero(groups, rows.shape[2], rows.shape[1], device)
    inside = TorchGraph(pruned, outputs=[name_of(node.inputs[0])]).to(device).eval()
    wanted = TorchGraph(original, outputs=[name_of(node.outputs[0])]).to(device).eval()
    kept = plan.values.get(name_of(node.outputs[0])) if isinstance(plan, ChannelPlan) else None
    feeds = Feeds(original)
    with torch.no_grad():
        for batch in feeds.batches(feeds.names, samples, BATCH_SIZE, device):
            given = dict(zip(feeds.names, batch, strict=True))
            (x,) = inside(*(given[name] for name in inside.input_names))
            (y,) = wanted(*(given[name] for name in wanted.input_names))
            y = y if kept is None else y[:, torch.from_numpy(kept.channels).to(y.device)]
            _take_in(node, weight, x, y, sums)
    mask = (
        _rows(node, plan.masks[name_of(node)]) if isinstance(plan, ZeroPlan) and name_of(node) in plan.masks else None
    )
    x_mean, y_mean, xx, xy = sums.centred()
    fitted = np.stack(
        [
            _solved(rows[group], xx[group], xy[group].T, ridge, None if mask is None else mask[group])
            for group in range(groups)
        ]
    )
    if not np.isfinite(fitted).all():
        return
    bias = (y_mean - np.einsum("gof,gf->go", fitted, x_mean)).reshape(-1)
    old = constant_bias(node, bias.size)
    assert old is not None
    write_layer(node, FreshNames(pruned.graph), weight=_as_weight(node, fitted, weight))
    shift_outputs(pruned, {name_of(node): bias - old})
    logger.debug("%s is fitted to %d positions", node.name, sums.count)


def _solved(
    rows: Float64[Array, "o f"],
    xx: Float64[Array, "f f"],
    xy: Float64[Array, "o f"],
    ridge: float,
    mask: Bool[NDArray[np.bool_], "o f"] | None,
) -> Float64[Array, "o f"]:
    """The weights of one group of outputs; masked ones, row by row, stay zero."""
    pull = ridge * max(float(np.trace(xx)) / len(xx), TINY)
    if mask is None:
        return rows + np.linalg.solve(xx + pull * np.eye(len(xx)), (xy - rows @ xx).T).T
    fitted = np.zeros_like(rows)
    for output, free in enumerate(mask):
        part = np.ix_(free, free)
        own = rows[output, free]
        step = np.linalg.solve(xx[part] + pull * np.eye(int(free.sum())), xy[output, free] - xx[part] @ own)
        fitted[output, free] = own + step
    return fitted


def _take_in(node: ir.Node, weight: Array, x: Tensor, y: Tensor, sums: _Sums) -> None:
    """One batch: x (N, C, ...) the layer's input, y (N, O, ...) its output in the original."""
    groups = sums.x.shape[0]
    if is_op(node, "Gemm"):
        sums.add(node.attributes.get_float("alpha", 1.0) * x.T[None], y.T[None])
        return
    taps = weight.shape[2:]
    if len(taps) == 1:
        x, y = x[:, :, None], y[:, :, None]
    height, width = (1, *taps)[-2:]
    ones = [1] * len(taps)
    strides, dilations = (list(node.attributes.get_ints(name, ones)) for name in ("strides", "dilations"))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * len(taps)))
    low, high = pads[: len(taps)], pads[len(taps) :]
    around = [pad for axis in reversed(range(len(taps))) for pad in (low[axis], high[axis])]
    x = torch.nn.functional.pad(x, around)
    at_once = max(UNFOLDED // max(4 * math.prod(y.shape[2:]) * x.shape[1] * height * width, 1), 1)
    for first in range(0, len(x), at_once):
        part, goal = x[first : first + at_once], y[first : first + at_once]
        patches = torch.nn.functional.unfold(
            part, (height, width), dilation=(1, *dilations)[-2:], stride=(1, *strides)[-2:]
        )
        sums.add(_by_group(patches, groups), _by_group(goal.flatten(2), groups))


def _by_group(values: Tensor, groups: int) -> Tensor:
    """(N, C, P) as (g, C/g, N P)."""
    count, channels, positions = values.shape
    return values.reshape(count, groups, channels // groups, positions).permute(1, 2, 0, 3).flatten(2)


def _rows(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    """(g, O/g, F) of an array of the weight's shape."""
    if is_op(node, "Gemm"):
        return (array if node.attributes.get_int("transB", 0) else array.T)[None]
    groups = node.attributes.get_int("group", 1)
    return array.reshape(groups, len(array) // groups, -1)


def _as_weight(node: ir.Node, rows: Array, weight: Array) -> Array:
    """Back to the weight's shape."""
    if is_op(node, "Gemm"):
        return np.asarray(rows[0] if node.attributes.get_int("transB", 0) else rows[0].T)
    return rows.reshape(weight.shape)
