"""Images as a report shows them: some as small PNG files, all as statistics of their channels."""

import base64
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from jaxtyping import UInt8
from numpy.typing import NDArray

from onnxdfq.images.images import Images
from onnxdfq.model_file import main_input
from onnxdfq.report.run import Channels, ImagesReport, LayerDistance

SHOWN, SIDE = 16, 72  # pictures, and the most pixels of a side
ENDS = (0.5, 99.5)  # percent of the numbers that black and white stand for


def images_report(
    model: ir.Model, images: Images, own: NDArray[np.generic] | None, distances: Mapping[str, float]
) -> ImagesReport:
    """What a report tells of images.

    Args:
        model: Float, canonical, its BatchNormalizations in place.
        images: That numbers were decided by.
        own: Inputs of the user's own, to hold their statistics beside.
        distances: How far they are from what each BatchNormalization remembers, by its node's name.
    """
    pictured = main_input(model).image is not None
    statistics = [_channels(images.method, _planes(model, images.pixels))] if pictured else []
    if pictured and own is not None:
        statistics.append(_channels("your own", _planes(model, own)))
    return ImagesReport(
        method=images.method,
        count=len(images),
        pictures=tuple(map(_encoded, _pictures(model, images))) if pictured else (),
        statistics=tuple(statistics),
        distances=tuple(LayerDistance(name=name, distance=found) for name, found in distances.items()),
    )


def _planes(model: ir.Model, pixels: NDArray[np.generic]) -> NDArray[np.float64]:
    """(N, C, H, W), in the model's units."""
    array = pixels.astype(np.float64)
    return array.transpose(0, 3, 1, 2) if main_input(model).image == "last" else array


def _channels(of: str, planes: NDArray[np.float64]) -> Channels:
    axes = (0, *range(2, planes.ndim))
    means, deviations = planes.mean(axis=axes), planes.std(axis=axes)
    return Channels(of=of, means=tuple(map(float, means)), deviations=tuple(map(float, deviations)))


def _pictures(model: ir.Model, images: Images) -> list[UInt8[NDArray[np.uint8], "h w c"]]:
    """The first few, as bytes of one or three channels, each channel stretched over the whole set."""
    planes = _planes(model, images.pixels[:SHOWN])
    if planes.ndim != 4:
        return []
    planes = planes if planes.shape[1] == 3 else planes[:, :1]
    step = -(-max(planes.shape[2:]) // SIDE)
    planes = planes[:, :, ::step, ::step]
    low, high = np.percentile(planes, ENDS, axis=(0, 2, 3), keepdims=True)
    stretched = np.clip((planes - low) / np.maximum(high - low, 1e-12), 0, 1)
    return list((255 * stretched).round().astype(np.uint8).transpose(0, 2, 3, 1))


def _encoded(picture: UInt8[NDArray[np.uint8], "h w c"]) -> str:
    return base64.b64encode(png(picture)).decode()


def png(picture: UInt8[NDArray[np.uint8], "h w c"]) -> bytes:
    """A PNG file (ISO/IEC 15948) of 8 bits, grey (C = 1) or RGB (C = 3)."""
    height, width, channels = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(picture))  # no filter
    kind = {1: 0, 3: 2}[channels]
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
