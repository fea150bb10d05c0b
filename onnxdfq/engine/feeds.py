"""What a model is fed: the image input, and constants for every other input."""

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.dtypes import torch_dtype
from onnxdfq.errors import ShapeError
from onnxdfq.model_file import constant_input, image_input, inputs


class Feeds:
    """Builds the input tuple of a graph from a batch of images.

    image_shape: (C, H, W). batch: the only batch size that runs, None where any does. Raises ShapeError when the image
    input is not of rank 4 or its shape is not known.
    """

    def __init__(self, model: ir.Model) -> None:
        self._image = image_input(model)
        self._others = {spec.name: spec for spec in inputs(model) if spec.name != self._image.name}
        if len(self._image.shape) != 4:
            raise ShapeError(
                f"The image input {self._image.name!r} is of rank {len(self._image.shape)}; images are synthesised for "
                "an input (N, C, H, W). Calibrate with data of your own: --calibration FILE."
            )
        self.batch, *sides = self._image.shape
        known = [side for side in sides if side is not None and side > 0]
        if len(known) != 3:
            raise ShapeError(
                f"The shape of the image input {self._image.name!r} is not known: give --input-shape 1,C,H,W."
            )
        self.image_shape = (known[0], known[1], known[2])

    @property
    def image_name(self) -> str:
        """The input that takes the images."""
        return self._image.name

    def of(self, graph: TorchGraph, images: Tensor) -> tuple[Tensor, ...]:
        """images (N, C, H, W) and, in the graph's order, what its other inputs get at this batch size."""
        return tuple(
            images.to(torch_dtype(self._image.dtype))
            if name == self._image.name
            else torch.from_numpy(constant_input(self._others[name], len(images))).to(images.device)
            for name in graph.input_names
        )
