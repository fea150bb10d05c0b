"""The header of a numpy array in a file, read before the array is: numpy trusts it."""

import io
import math
import struct
import warnings
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from onnxdfq.errors import DataError

MAGIC = npy.MAGIC_PREFIX
LONGEST = 10_000  # bytes; numpy reads no more
MOST_BYTES = 2**31
"""Of all arrays of a file together."""
_PLAIN = "save plain arrays: images uint8 (N, H, W, C) or float32, labels integers"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read_header(stream: IO[bytes], size: int, where: str) -> Header:
    """The header of the array that begins here.

    Args:
        stream: At its beginning.
        size: Bytes that there are, header included.
        where: For messages.

    Raises:
        DataError: There is no array, or none of plain numbers or texts, or more than MOST_BYTES, or less than it says.
    """
    version = stream.read(len(MAGIC) + 2)
    if not version.startswith(MAGIC) or len(version) < len(MAGIC) + 2:
        raise DataError(f"{where} is no array of numpy; {_PLAIN}.")
    if version[-2] not in (1, 2):
        raise DataError(f"{where} is an array of version {version[-2]}.{version[-1]} of .npy; {_PLAIN}.")
    length_type = struct.Struct("<H" if version[-2] == 1 else "<I")
    packed = stream.read(length_type.size)
    if len(packed) < length_type.size:
        raise DataError(f"{where} is cut off within its header.")
    (length,) = length_type.unpack(packed)
    if length > LONGEST:
        raise DataError(f"{where} has a header of {length:,} bytes; at most {LONGEST:,} are read.")
    found = _parsed(packed + stream.read(length), version[-2], where)
    needed, there = math.prod(found.shape) * found.dtype.itemsize, size - len(version) - len(packed) - length
    if needed > there:
        raise DataError(
            f"{where} is cut off or damaged: by its header it has {needed:,} bytes of numbers, and there are {there:,}."
        )
    return found


def _parsed(packed: bytes, version: int, where: str) -> Header:
    reader = npy.read_array_header_1_0 if version == 1 else npy.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, _, dtype = reader(io.BytesIO(packed))
    except Exception as error:  # whatever Python makes of a literal of nonsense
        raise DataError(f"{where} has a header that is none of an array; save it again.") from error
    if dtype.hasobject:
        raise DataError(f"{where} would need pickle, which can run code and is refused; {_PLAIN}.")
    if dtype.kind in "VmM":
        raise DataError(f"{where} holds records, raw bytes or dates ({dtype}); {_PLAIN}.")
    if any(not 0 <= length <= MOST_BYTES for length in shape) or math.prod(shape) > MOST_BYTES:
        raise DataError(f"{where} has the shape {shape} by its header, which no array of {MOST_BYTES:,} bytes has.")
    return Header(shape=shape, dtype=dtype)
