"""Synthesis: calibration images out of nothing but a trained model. One method per file, one frozen object per method.

    images = Dgh(steps=200).synthesize(model, count=256, seed=0)

takes a canonical float model with its BatchNormalizations intact and returns `Images`.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from onnxdfq.images.images import Images
from onnxdfq.methods import dgh, zeroq
from onnxdfq.methods.dgh import Dgh
from onnxdfq.methods.noise import Noise
from onnxdfq.methods.zeroq import ZeroQ
from onnxdfq.recipe.names import one_of
from onnxdfq.synthesis.input_range import InputRange, input_range
from onnxdfq.synthesis.quality import ImageQuality, evaluate_images

__all__ = [
    "IMAGE_COUNT",
    "METHODS",
    "Dgh",
    "ImageQuality",
    "Images",
    "InputRange",
    "Method",
    "Noise",
    "ZeroQ",
    "evaluate_images",
    "input_range",
    "method_named",
]

Method = Dgh | ZeroQ | Noise

IMAGE_COUNT: Mapping[str, int] = MappingProxyType({"fast": 256, "standard": 512, "paper": 1024})
METHODS: Mapping[str, Mapping[str, Method]] = MappingProxyType(
    {"dgh": dgh.EFFORTS, "zeroq": zeroq.EFFORTS, "noise": dict.fromkeys(IMAGE_COUNT, Noise())}
)


def method_named(
    name: str,
    *,
    effort: str = "fast",
    images: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
) -> tuple[Method, int]:
    """A method at an effort ("fast", "standard", "paper") and its number of images; None leaves a value to the effort.

    steps has no meaning for noise and is ignored there. Raises InputError for an unknown name, with the nearest one.
    """
    one_of("method", name, METHODS)
    one_of("effort", effort, IMAGE_COUNT)
    method = METHODS[name][effort]
    if batch_size is not None:
        method = replace(method, batch_size=batch_size)
    if steps is not None and not isinstance(method, Noise):
        method = replace(method, steps=steps)
    return method, IMAGE_COUNT[effort] if images is None else images
