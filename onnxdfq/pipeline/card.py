"""The card of a run's images, by the networks that made them; and that of pictures at hand."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from onnxdfq.errors import DataError, InputError
from onnxdfq.generators.zoo import Zoo, zoo_of, zoo_of_one
from onnxdfq.images.archive import IMAGES, ArrayFile
from onnxdfq.images.images import Images
from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.model_file import main_input
from onnxdfq.model_file.inputs import CHANNELS
from onnxdfq.recipe.zoo import Member
from onnxdfq.synthesis.card import ImageCard, image_card
from onnxdfq.synthesis.input_range import PIXEL_MEAN, PIXEL_STD
from onnxdfq.synthesis.view import View


def card_of_run(model: FloatModel, images: Images, run: Run) -> ImageCard | None:
    """By each model of the zoo, by the model itself where there is none; None where the input takes no pictures."""
    spec = main_input(model.graph)
    if spec.image is None:
        return None
    if images.pictures is not None and run.zoo:
        return card_of_pictures(images.pictures, run.zoo, device=run.device)
    zoo = zoo_of_one(
        model.graph,
        model.normalization,
        name=model.source.name,
        device=run.device,
        precision="float32",
    )
    (view,) = zoo.views([0])
    planes = images.pixels.astype(np.float32, copy=False)
    planes = planes.transpose(0, 3, 1, 2) if spec.image == "last" else planes.reshape(-1, *spec.planes)
    return image_card(view.scale.standardised(np.ascontiguousarray(planes)), [view])


def card_of_pictures(
    pictures: UInt8[NDArray[np.uint8], "n h w c"], members: Sequence[Member], *, device: str
) -> ImageCard:
    """By each member of a zoo, of which one is in memory at a time.

    Raises:
        InputError: there is no member, one cannot be loaded, or it takes other channels.
    """
    if not members:
        raise InputError("The card of images is made by models; give one at least.", field="zoo")
    zoo = zoo_of(members, held=1, device=device, precision="float32")
    return image_card(_standardised(pictures), _fitting(zoo, pictures.shape[3]))


def pictures_of(source: Any) -> UInt8[NDArray[np.uint8], "n h w c"]:
    """Pictures as bytes, from images that were made for several models, an array of bytes or a file of either.

    Raises:
        DataError: it holds something else.
    """
    if isinstance(source, Images):
        found = source.pictures
        if found is None:
            raise DataError("These images were made for one model, in its own units; other models cannot look at them.")
        return found
    if isinstance(source, str | Path):
        file = ArrayFile(Path(source))
        array = file.get(IMAGES)
    else:
        array = np.asarray(source)
    if array is None or array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape:
        held = "no array of that name" if array is None else f"{array.dtype} {array.shape}"
        raise DataError(f"The card needs pictures that any model can look at, uint8 (N, H, W, C); there is {held}.")
    return array


def _standardised(pictures: NDArray[np.uint8]) -> Float32[NDArray[np.float32], "n c h w"]:
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32)
    planes /= 255 * PIXEL_STD
    planes -= PIXEL_MEAN / PIXEL_STD
    return planes


def _fitting(zoo: Zoo, channels: int) -> Iterator[View]:
    for place in range(len(zoo)):
        (view,) = zoo.views([place])
        spec = view.network.spec
        if spec.image is None or spec.planes[0] != channels:
            raise InputError(
                f"{view.name} takes {spec.text()}, and the pictures have {channels} channels; "
                f"pictures of {' or '.join(map(str, CHANNELS))} channels go into models of as many.",
                field="zoo",
            )
        yield view
