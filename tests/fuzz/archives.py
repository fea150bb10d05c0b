"""Broken data: .npz and .npy files, and images of many formats."""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import extremes
from .extremes import Random, pick

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "EPS", "ICO", "TGA", "PCX", "SGI", "PDF", "AVIF")
SUFFIXES = (".png", ".jpg", ".bmp", ".gif", ".tif", ".webp", ".ppm", ".jpeg", ".tiff")
_HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3, 8)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3, 8, 8)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '|V9', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '<U5', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (4,)}",
    "{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': (4,)}",
    "{'descr': '<c16', 'fortran_order': True, 'shape': (4, 3, 8, 8)}",
    "{'descr': 5, 'fortran_order': 'x', 'shape': 'abc'}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2**9999,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "4," * 200 + ")}",
    "(" * 500,
    "{" + " " * 20000 + "}",
    "\0",
    "__import__('os')",
)


def archive(random: Random, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """An .npz file of these arrays with one thing wrong."""
    members = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
    name = pick(random, list(members))
    array = arrays[name[:-4]]
    method = zipfile.ZIP_DEFLATED if random.random() < 0.5 else zipfile.ZIP_STORED
    what = random.integers(9)
    if what == 0:
        members[name] = _npy(_other(random, array))
    elif what == 1:
        members[name] = _headed(pick(random, _HEADERS), array.tobytes())
    elif what == 2:
        members[name] = extremes.chop(random, members[name])
    elif what == 3:
        members[pick(random, ("notes.txt", "x.npy", "../up.npy", "a/b.npy", ".npy", "labels.npy"))] = random.bytes(99)
    elif what == 4:
        members.pop(name)
    elif what == 5:
        method, members[name] = zipfile.ZIP_DEFLATED, _headed(_shaped(2**29), b"\0" * 2**22)
    data = zipped(members, method)
    if what == 6:
        return extremes.chop(random, data)
    if what == 7:  # flags of encryption, and methods of compression that nobody has
        return _patched(data, 8 if random.random() < 0.5 else 6, pick(random, (1, 12, 14, 93, 99, 0xFFFF)))
    if what == 8:
        return members[name] if random.random() < 0.5 else extremes.chop(random, members.get(name, b""))
    return data


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive in memory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def picture(random: Random, *, broken: bool = True) -> tuple[str, bytes]:
    """A small image file: suffix and bytes, the suffix not always that of the format."""
    kind = pick(random, FORMATS)
    mode = (
        pick(random, ("RGB", "L"))
        if kind in ("JPEG", "EPS", "PPM", "AVIF", "WEBP", "PCX", "SGI", "TGA")
        else pick(random, ("RGB", "L", "P", "1", "RGBA"))
    )
    mode = "RGB" if (kind, mode) in {("PDF", "RGBA"), ("BMP", "RGBA")} else mode
    image = Image.fromarray(random.integers(0, 256, (9, 11, 3)).astype(np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, "PNG" if kind == "AVIF" and not broken else kind)
    data = stream.getvalue()
    if broken:
        what = random.integers(5)
        if what == 0:
            data = _png(pick(random, (0, 1, 2**16, 2**20, 2**31 - 1)), pick(random, (1, 2**14, 2**31 - 1)))
        elif what < 4:
            data = extremes.chop(random, data)
    return pick(random, SUFFIXES), data


def _other(random: Random, array: NDArray[Any]) -> NDArray[Any]:
    """The array of another type or shape, or with numbers that are none."""
    what = random.integers(7)
    if what == 0:
        return array.astype(pick(random, ("f2", "f8", "i8", "u1", "?", "c8", "U3", "S2", ">f4", "u8")))
    if what == 1:
        return array[..., None]
    if what == 2:
        return array.ravel()
    if what == 3:
        return array[:0] if array.ndim else np.zeros(0, array.dtype)
    if what == 4:
        return np.full_like(array, extremes.real(random) if array.dtype.kind == "f" else 120)
    if what == 5:
        return np.full(array.shape, 3e38, np.float32)
    return np.asarray(array.tolist(), dtype=object).astype(str)


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def _headed(header: str, data: bytes) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + data


def _shaped(count: int) -> str:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},)}}"


def _patched(data: bytes, offset: int, value: int) -> bytes:
    """A field of two bytes of every entry of a zip archive, in both places where it stands."""
    changed = bytearray(data)
    for signature, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = changed.find(signature)
        while at >= 0:
            struct.pack_into("<H", changed, at + offset + shift, value)
            at = changed.find(signature, at + 4)
    return bytes(changed)


def _png(width: int, height: int) -> bytes:
    """A PNG that says it is of this size, with hardly any pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 2**16)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
