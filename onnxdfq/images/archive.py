"""Arrays from .npz and .npy files: what they expand to is known from their headers before anything is expanded."""

import io
import math
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.paths import open_ordinary

IMAGES = "images"
"""The array of the main input."""
MOST_BYTES = 2**31
"""Of all arrays of a file together, expanded."""
MOST_DIRECTORY = 2**20  # bytes of an archive's list of entries, some ten thousand of them
LONGEST_HEADER = 10_000  # that numpy reads
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # those that numpy writes
_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
_PLAIN = "save plain arrays: images uint8 (N, H, W, C) or float32, labels integers"


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Of one array; `begins` is where its numbers do."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begins: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayFile(Mapping[str, NDArray[Any]]):
    """By name, the arrays of an .npz file; that of an .npy file as `images`. An array is read when it is asked for.

    Raises:
        DataError: The file is neither, is damaged, or expands to more than MOST_BYTES; likewise of an array when it is
            asked for, and where that would need pickle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, zipfile.ZipInfo | None] = {IMAGES: None}
        with open_ordinary(path, kind=DataError) as stream:
            if stream.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                self._check_size(path.stat().st_size)
            else:
                self._entries = {_name(entry): entry for entry in self._directory(stream)}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._entries:
            raise KeyError(name)
        self._header(name)
        with self._opened(name) as stream, self._refusing(name):
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, of all entries that are called as arrays are."""
        named = [name for name, entry in self._entries.items() if entry is None or entry.filename.endswith(".npy")]
        return {name: self._header(name).shape for name in named}

    def _directory(self, stream: IO[bytes]) -> list[zipfile.ZipInfo]:
        """The entries of an archive, none of them expanded."""
        cannot = f"{self.path} cannot be read as .npz"
        if not _directory_is_short(stream):
            raise DataError(f"{cannot}: it is none, or is cut off, or its list of entries is longer than any needs.")
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
            raise DataError(f"{cannot}: {error}.") from error
        for name, count in Counter(map(_name, entries)).items():
            if count > 1:
                raise DataError(f"{cannot}: it has {count} entries called {name!r}, and nothing tells which is meant.")
        self._check_size(sum(entry.file_size for entry in entries))
        return entries

    def _check_size(self, size: int) -> None:
        if size > MOST_BYTES:
            raise DataError(
                f"{self.path} expands to {size:,} bytes; at most {MOST_BYTES:,} are read. Give fewer samples, or a "
                "folder of images."
            )

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """The bytes of one entry."""
        entry, where = self._entries[name], self._where(name)
        with open_ordinary(self.path, kind=DataError) as stream:
            if entry is None:
                yield stream
                return
            if entry.flag_bits & 1:
                raise DataError(f"{where} is encrypted; save it without a password.")
            if entry.compress_type not in _COMPRESSIONS:
                raise DataError(
                    f"{where} is compressed in a way (number {entry.compress_type}) numpy does not use; save it again."
                )
            with self._refusing(name), zipfile.ZipFile(stream) as archive, archive.open(entry) as part:
                yield part

    def _header(self, name: str) -> _Header:
        where, entry = self._where(name), self._entries[name]
        with self._opened(name) as stream:
            with self._refusing(name):
                begin = stream.read(len(npy.MAGIC_PREFIX) + 2)
                if not begin.startswith(npy.MAGIC_PREFIX) or len(begin) < len(npy.MAGIC_PREFIX) + 2:
                    raise DataError(f"{where} is no array of numpy; {_PLAIN}.")
                length_type = "<H" if begin[-2] == 1 else "<I"
                packed = stream.read(struct.calcsize(length_type))
            found = _parsed(where, begin, packed, length_type, stream)
        size = self.path.stat().st_size if entry is None else entry.file_size
        if found.bytes > size - found.begins:
            raise DataError(
                f"{where} is cut off or damaged: by its header it holds {found.bytes:,} bytes of numbers, and there "
                f"are {size - found.begins:,}."
            )
        return found

    def _where(self, name: str) -> str:
        return str(self.path) if self._entries[name] is None else f"{self.path}: the entry {name!r}"

    @contextmanager
    def _refusing(self, name: str) -> Iterator[None]:
        """What zipfile, zlib and numpy find wrong with the bytes of an entry."""
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self._where(name)} is damaged: {error}.") from error


def _parsed(where: str, begin: bytes, packed: bytes, length_type: str, stream: IO[bytes]) -> _Header:
    """A header behind its first bytes. Its text is a literal of Python, which numpy evaluates as one."""
    if begin[-2] not in (1, 2):
        raise DataError(f"{where} is an array of version {begin[-2]}.{begin[-1]} of .npy; {_PLAIN}.")
    if len(packed) < struct.calcsize(length_type):
        raise DataError(f"{where} is cut off within its header.")
    (length,) = struct.unpack(length_type, packed)
    if length > LONGEST_HEADER:
        raise DataError(f"{where} has a header of {length:,} bytes; at most {LONGEST_HEADER:,} are read.")
    text = stream.read(length)
    reader = npy.read_array_header_1_0 if begin[-2] == 1 else npy.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, _, dtype = reader(io.BytesIO(packed + text))
    except Exception as error:  # whatever Python makes of a literal of nonsense
        raise DataError(f"{where} has a header that is none of an array; save it again.") from error
    if dtype.hasobject:
        raise DataError(f"{where} would need pickle, which can run code and is refused; {_PLAIN}.")
    if dtype.kind in "VmM":
        raise DataError(f"{where} holds records, raw bytes or dates ({dtype}); {_PLAIN}.")
    if any(size < 0 for size in shape) or math.prod(shape) > MOST_BYTES:
        raise DataError(f"{where} has the shape {shape} by its header; at most {MOST_BYTES:,} bytes are read.")
    return _Header(shape=shape, dtype=dtype, begins=len(begin) + len(packed) + length)


def _directory_is_short(stream: IO[bytes]) -> bool:
    """Whether an archive ends as one does, with a list of entries that may be read whole."""
    end = stream.seek(0, 2)
    stream.seek(max(0, end - _END_OF_DIRECTORY.size - 2**16))
    tail = stream.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END_OF_DIRECTORY.size > len(tail):
        return False
    *_, size, _, _ = _END_OF_DIRECTORY.unpack_from(tail, place)
    # A second, longer form of the end stands in front of it where there is one, and numpy needs none below MOST_BYTES.
    return bool(size <= MOST_DIRECTORY) and tail[max(0, place - 20) : place][:4] != b"PK\x06\x07"


def _name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")
