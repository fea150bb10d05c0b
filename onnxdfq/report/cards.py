"""The Python door to cards of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxdfq.pipeline.arguments import members_of
from onnxdfq.recipe.choices import DEVICES
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ZooLike
    from onnxdfq.synthesis.card import ImageCard


def image_card(images: Any, zoo: ZooLike, *, device: str | None = None) -> ImageCard:
    """What pictures are worth, without labels, by each of several models: share that it is sure of, distance of their
    statistics from those that it remembers, diversity, entropy of its mean answer.

    Args:
        images: of a synthesis for several models, an array uint8 (N, H, W, C), or the path of an .npz file of either.
        zoo: models, as for `compress`; each resizes and normalises its own view.
        device: "auto", "cpu" or "cuda".

    Raises:
        DataError: these are no pictures. InputError: there is no model, or one cannot look at them.
    """
    one_of("device", device or "auto", DEVICES, field="device")
    from onnxdfq.pipeline.card import card_of_pictures, pictures_of
    from onnxdfq.pipeline.checks import found_device

    pictures = pictures_of(images)
    with members_of(zoo) as members:
        return card_of_pictures(pictures, members, device=found_device(device or "auto"))
