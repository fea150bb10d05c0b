"""A rule for each operator: the spread of its output from the node and the spreads of its inputs."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64

from passes.graph.affine import batch_norm_affine, channel_vector
from passes.graph.editing import as_float64, constant_value, is_op, name_of, rank, scalar_value
from passes.graph.operators import ELEMENTWISE
from passes.moments.spread import ABSCISSAE, Array, Spread, erf, product_of, sum_of

Rule = Callable[[ir.Node, list[Spread | None]], Spread | None]


def _function(function: Callable[[ir.Node, Array], Array | None]) -> Rule:
    """The rule of a function that acts on each number by itself."""

    def rule(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
        spread = inputs[0]
        points = None if spread is None else function(node, spread.points)
        return None if spread is None or points is None else spread.reshaped(points)

    return rule


def _clip(node: ir.Node, x: Float64[Array, "c k"]) -> Float64[Array, "c k"] | None:
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        bound = default if value is None else scalar_value(value)
        if bound is None:
            return None
        bounds.append(bound)
    return np.minimum(np.maximum(x, bounds[0]), bounds[1])


def _prelu(node: ir.Node, x: Float64[Array, "c k"]) -> Float64[Array, "c k"] | None:
    slope = constant_value(node.inputs[1])
    if slope is None or slope.size not in (1, len(x)):
        return None
    return np.where(x < 0, as_float64(slope).reshape(-1, 1) * x, x)


def _sigmoid(x: Float64[Array, "c k"]) -> Float64[Array, "c k"]:
    return 0.5 * (1 + np.tanh(x / 2))


def _gelu(node: ir.Node, x: Float64[Array, "c k"]) -> Float64[Array, "c k"]:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def _elu(x: Float64[Array, "c k"], alpha: float) -> Float64[Array, "c k"]:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _hard_sigmoid(node: ir.Node, x: Float64[Array, "c k"]) -> Float64[Array, "c k"]:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return np.asarray(np.clip(alpha * x + beta, 0, 1))


FUNCTIONS: dict[str, Callable[[ir.Node, Array], Array | None]] = {
    "Abs": lambda node, x: np.abs(x),
    "Clip": _clip,
    "Elu": lambda node, x: _elu(x, node.attributes.get_float("alpha", 1.0)),
    "Erf": lambda node, x: erf(x),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda node, x: x,
    "LeakyRelu": lambda node, x: np.where(x < 0, node.attributes.get_float("alpha", 0.01) * x, x),
    "Mish": lambda node, x: x * np.tanh(np.logaddexp(0, x)),
    "Neg": lambda node, x: -x,
    "PRelu": _prelu,
    "Relu": lambda node, x: np.maximum(x, 0),
    "Sigmoid": lambda node, x: _sigmoid(x),
    "Softplus": lambda node, x: np.logaddexp(0, x),
    "Swish": lambda node, x: x * _sigmoid(node.attributes.get_float("alpha", 1.0) * x),
    "Tanh": lambda node, x: np.tanh(x),
}


def _same(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    """Poolings, as if neighbours were equal: averages have at most this deviation, maxima at least this mean."""
    if inputs[0] is None:
        return None
    return Spread(points=inputs[0].points, origin=name_of(node.outputs[0]), approximate=True)


def _pair(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    """Add, Sub, Mul, Div of two values, or of a value and a constant per channel."""
    left, right = inputs
    name = name_of(node.outputs[0])
    if left is not None and right is not None:
        if left.points.shape != right.points.shape:
            return None
        if is_op(node, "Add", "Sub"):
            return sum_of(left, right if is_op(node, "Add") else right.mapped(np.negative), name)
        return product_of(left, right, name) if is_op(node, "Mul") else None
    first = left is not None
    spread, array = (left, constant_value(node.inputs[1])) if first else (right, constant_value(node.inputs[0]))
    if spread is None or array is None:
        return None
    axes, channels = rank(node.inputs[0 if first else 1]), len(spread.points)
    vector = np.full(channels, float(array.reshape(()))) if array.size == 1 else None
    if vector is None and axes is not None:
        vector = channel_vector(array, axes, channels)
    if vector is None:
        return None
    constant = vector[:, None]
    match node.op_type:
        case "Add":
            return spread.mapped(lambda x: x + constant)
        case "Sub":
            return spread.mapped(lambda x: x - constant if first else constant - x)
        case "Mul":
            return spread.mapped(lambda x: x * constant)
        case _:
            return spread.mapped(lambda x: x / constant) if first and constant.all() else None


def _batch_norm(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    """The input has the running statistics (`spreads` gives it these), so a normal one stays normal."""
    affine, spread = batch_norm_affine(node), inputs[0]
    if affine is None or spread is None:
        return None
    return spread.mapped(lambda x: x * affine.scale[:, None] + affine.shift[:, None])


def _concat(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    parts = [spread for spread in inputs if spread is not None]
    if node.attributes.get_int("axis", 0) != 1 or len(parts) < len(inputs):
        return None
    points = np.concatenate([spread.points for spread in parts])
    return Spread(points=points, origin=name_of(node.outputs[0]), approximate=any(p.approximate for p in parts))


def _softmax(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    """Over the channels: C numbers in [0, 1] with mean 1 / C. No more is certain; Phi(z)^(C-1) has these properties."""
    spread, axes, axis = inputs[0], rank(node.outputs[0]), node.attributes.get_int("axis", -1)
    if spread is None or (axis if axis >= 0 else axis + (axes or 0)) != 1:
        return None
    share = np.power(0.5 * (1 + erf(ABSCISSAE * math.sqrt(0.5))), len(spread.points) - 1)
    points = np.broadcast_to(share, spread.points.shape)
    return Spread(points=points, origin=name_of(node.outputs[0]), approximate=True)


def _pad(node: ir.Node, inputs: list[Spread | None]) -> Spread | None:
    """Padding of the channel axis adds constant channels. Of the other axes it is neglected, as all borders are."""
    spread, amounts = inputs[0], constant_value(node.inputs[1])
    if spread is None or amounts is None or len(node.inputs) > 3 or (amounts < 0).any() or amounts.size < 4:
        return None
    if not any(amounts[1 :: amounts.size // 2]):
        return _same(node, inputs)
    fill = scalar_value(node.inputs[2]) if len(node.inputs) > 2 else 0.0
    if node.attributes.get_string("mode", "constant") != "constant" or fill is None:
        return None
    widths = ((int(amounts[1]), int(amounts[1 + amounts.size // 2])), (0, 0))
    inside = any(np.delete(amounts, [1, 1 + amounts.size // 2]))
    return spread.reshaped(np.pad(spread.points, widths, constant_values=fill), approximate=inside)


RULES: dict[str, Rule] = {
    **{op_type: _function(function) for op_type, function in FUNCTIONS.items()},
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "MaxPool", "GlobalMaxPool", "Resize"), _same),
    **dict.fromkeys(ELEMENTWISE, _pair),
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Pad": _pad,
    "Softmax": _softmax,
}
