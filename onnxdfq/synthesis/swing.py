"""Swing convolutions: what a convolution with a stride reads is moved by a pixel, or not, anew in each step.

A stride of 2 always looks at the same pixels with the same weights, so that its gradient draws a checkerboard into
images; moved at random, it reaches all pixels alike.

Source: GENIE, Jeon et al., arXiv 2212.04780, §3.2: reflected borders, and a crop at random of the size there was.
"""

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir
import torch
from jaxtyping import Float
from torch import Tensor

from onnxdfq.engine.operation import Replacement
from passes.graph.strided import MarkStrided


class Swing:
    """Moves what each convolution with a stride reads.

    Args:
        model: Float, canonical; only read.

    model: the network that moves, given `replacements`.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model.clone()
        marked = MarkStrided()
        marked(self.model)
        sources = {node.name: node.inputs[0] for node in self.model.graph if node.name in marked.marks}
        self._shifts = dict.fromkeys(marked.marks, (0, 0))
        self.replacements: Mapping[str, Replacement] = {
            mark: Replacement(source=str(source.name), function=partial(self._move, mark))
            for mark, source in sources.items()
            if source is not None
        }

    def draw(self, random: torch.Generator) -> None:
        """Move anew, each convolution by itself and the whole batch alike."""
        for mark in self._shifts:
            rows, columns = torch.randint(-1, 2, (2,), generator=random).tolist()
            self._shifts[mark] = rows, columns

    def _move(self, mark: str, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return _moved(x, *self._shifts[mark])


def _moved(x: Float[Tensor, "n c h w"], rows: int, columns: int) -> Float[Tensor, "n c h w"]:
    """Shifted by -1, 0 or 1 along each axis; what comes in is the reflection. An axis of one pixel stays as it is."""
    for axis, shift in ((2, rows), (3, columns)):
        size = x.shape[axis]
        if shift and size > 1:
            outer = 1 if shift > 0 else size - 2
            edge, rest = x.narrow(axis, outer, 1), x.narrow(axis, max(-shift, 0), size - 1)
            x = torch.cat([edge, rest] if shift > 0 else [rest, edge], axis)
    return x
