"""The inputs of a graph: images for the one that takes them, constants for every other."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine.dtypes import torch_dtype
from onnxdfq.errors import DataError, ShapeError
from onnxdfq.model_file import constant_input, image_input, inputs


class Feeds:
    """Tensors for the inputs of a model, from images.

    Args:
        model: Read, not kept. A graph that is made from it may have fewer inputs, or the same in another order.

    Raises:
        ShapeError: No input of the model takes images, or several do (see `image_input`).
    """

    def __init__(self, model: ir.Model) -> None:
        self._image = image_input(model)
        self._specs = {spec.name: spec for spec in inputs(model)}

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs, in graph order."""
        return tuple(self._specs)

    @property
    def image_name(self) -> str:
        """The input that takes the images."""
        return self._image.name

    @property
    def batch(self) -> int | None:
        """The only batch size that runs, None where any does."""
        return self._image.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image.

        Raises:
            ShapeError: The image input is not of rank 4, or the model leaves its sizes open.
        """
        if len(self._image.shape) != 4:
            raise ShapeError(
                f"The image input {self._image.name!r} is of rank {len(self._image.shape)}; images are synthesised for "
                "an input (N, C, H, W). Calibrate with data of your own: --calibration FILE."
            )
        channels, height, width = self._image.shape[1:]
        if not channels or not height or not width:
            raise ShapeError(
                f"The shape of the image input {self._image.name!r} is not known: give --input-shape 1,C,H,W."
            )
        return channels, height, width

    def of(self, names: Sequence[str], images: Tensor) -> tuple[Tensor, ...]:
        """The arguments of a graph with the inputs `names`, on the device of the images.

        Args:
            names: Of inputs of the model.
            images: (N, ...) of any floating type, in the model's input units.

        Returns:
            In the order of `names`: the images in the input's own type; for other inputs `constant_input` at batch N.
        """
        return tuple(
            images.to(torch_dtype(self._image.dtype))
            if name == self._image.name
            else torch.from_numpy(constant_input(self._specs[name], len(images))).to(images.device)
            for name in names
        )

    def batches(
        self, names: Sequence[str], pixels: NDArray[np.float32], batch_size: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yields `of` for all images, batch by batch.

        Where the model runs at one batch size only, images that do not fill a last batch are left out.

        Args:
            names: As for `of`.
            pixels: (N, ...) float32 in the model's input units.
            batch_size: Images in a batch, where the model leaves it open.
            device: Of the tensors.

        Raises:
            DataError: The images are not of the input's shape, or do not fill the one batch that runs.
        """
        self._check(pixels)
        size = self.batch or batch_size
        for start in range(0, len(pixels) - (size - 1 if self.batch else 0), size):
            images = torch.from_numpy(np.ascontiguousarray(pixels[start : start + size])).to(device)
            yield self.of(names, images)

    def _check(self, pixels: NDArray[np.float32]) -> None:
        expected = self._image.shape[1:]
        if pixels.ndim != len(expected) + 1 or any(
            size not in (None, found) for size, found in zip(expected, pixels.shape[1:], strict=True)
        ):
            raise DataError(
                f"The images are {pixels.shape} and the input {self.image_name!r} takes "
                f"(N, {', '.join(map(str, expected))})."
            )
        if self.batch is not None and len(pixels) < self.batch:
            raise DataError(
                f"The model takes {self.batch} images at a time and only {len(pixels)} are there; give more."
            )
