"""Where a network has formed features of one level: edges, shapes, parts, meanings."""

from collections.abc import Sequence

import onnx_ir as ir
from jaxtyping import Float, Float32
from torch import Tensor

from passes.graph.editing import name_of
from passes.graph.operators import CURVES

MOST_LEVELS = 4


def feature_levels(model: ir.Model, *, most: int = MOST_LEVELS) -> tuple[str, ...]:
    """Names of values of growing depth, one sample along the first axis: outputs of activation functions, else of
    LayerNormalizations. Of a network whose images shrink the last of each size, the last ones; of any other as many at
    equal distances, the last among them.

    Source: EnhancingDFQ, §3.3.1, which leaves open which layers are chosen.
    """
    batch = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
    found: list[ir.Value] = []
    for kinds in (CURVES, {"LayerNormalization"}):
        if not found:
            values = [node.outputs[0] for node in model.graph if node.op_type in kinds]
            found = [v for v in values if v.shape is not None and len(v.shape) > 2 and _is_batch(v.shape[0], batch)]
    sizes = {tuple(value.shape[2:]): value for value in found if value.shape is not None and len(value.shape) == 4}
    if len(sizes) > 1:
        return tuple(name_of(value) for value in list(sizes.values())[-most:])
    count = min(most, len(found))
    return tuple(name_of(found[len(found) * (place + 1) // count - 1]) for place in range(count))


def _is_batch(size: int | ir.SymbolicDim, batch: int | ir.SymbolicDim | None) -> bool:
    """Whether an axis may be that of samples: shape inference forgets the names of free sizes behind a Reshape."""
    return size == batch if isinstance(batch, int) else not isinstance(size, int)


def pooled(values: Sequence[Float[Tensor, "n ..."]]) -> list[Float32[Tensor, "n _"]]:
    """The mean of each channel of images, or of each feature of tokens."""
    return [value.float().mean((2, 3) if value.dim() == 4 else tuple(range(1, value.dim() - 1))) for value in values]
