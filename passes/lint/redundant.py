"""Whether a QuantizeLinear makes the activation function before it redundant."""

import numpy as np
import onnx_ir as ir

from passes.graph.editing import is_op, scalar_value
from passes.lint.quantized_graph import Grid


def is_redundant(activation: ir.Node, grid: Grid, *, rounded: bool) -> bool:
    """Whether the saturation at the ends of `grid` has the effect of `activation` (Relu or Clip).

    rounded: the bounds are first rounded to the grid, half to even, as ONNX Runtime does for a layer that it fuses with
    its activation function (`IsClipMadeRedundantByQ`). For a Clip alone it does not (`ClipQuantFusion`).
    """
    if grid.scale is None or grid.zero_point is None or grid.scale.size != 1 or grid.zero_point.size != 1:
        return False
    least, greatest = _range(grid.container)
    zero, scale = int(grid.zero_point.reshape(())), np.float32(grid.scale.reshape(()))
    if is_op(activation, "Relu"):
        return zero == least
    bounds = _bounds(activation)
    if bounds is None:
        return False
    if not rounded:
        return bool(bounds[0] <= scale * np.float32(least - zero) and scale * np.float32(greatest - zero) <= bounds[1])
    low, high = (bound if np.isinf(bound) else np.rint(bound / scale) + zero for bound in bounds)
    return bool(low <= least and greatest <= high)


def _bounds(clip: ir.Node) -> tuple[np.float32, np.float32] | None:
    """Both bounds of a Clip, None where one is computed."""
    found = []
    for index, name, missing in ((1, "min", -np.inf), (2, "max", np.inf)):
        value = clip.inputs[index] if index < len(clip.inputs) else None
        attribute = clip.attributes.get(name)
        bound = missing if value is None else scalar_value(value)
        if attribute is not None:
            bound = attribute.as_float()
        if bound is None:
            return None
        found.append(np.float32(bound))
    return found[0], found[1]


def _range(container: str) -> tuple[int, int]:
    bits = int(container.lstrip("uint"))
    return (0, 2**bits - 1) if container.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
