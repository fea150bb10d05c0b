"""Arrays from .npz and .npy files: what they expand to is known from their headers before anything is expanded."""

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.array_header import MAGIC, MOST_BYTES, Header, read_header
from onnxdfq.paths import open_ordinary

IMAGES = "images"
"""The array of the main input."""
MOST_DIRECTORY = 2**20  # bytes of an archive's list of entries, some ten thousand of them
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # those that numpy writes
_END = struct.Struct("<4s4H2LH")


class ArrayFile(Mapping[str, NDArray[Any]]):
    """By name, the arrays of an .npz file; that of an .npy file as `images`. An array is read when it is asked for.

    Raises:
        DataError: The file is neither, is damaged, or expands to more than MOST_BYTES. Likewise of an array when it is
            asked for, and where that would need pickle.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, zipfile.ZipInfo] = {}  # none of an .npy file
        self._headers: dict[str, Header | DataError] = {}
        with open_ordinary(path, kind=DataError) as stream:
            begin, size = stream.read(len(MAGIC)), os.fstat(stream.fileno()).st_size
            stream.seek(0)
            if begin == MAGIC:
                self._check_size(size)
                self._headers[IMAGES] = read_header(stream, size, str(path))
                return
            with self._archive(stream) as archive:
                self._entries = self._directory(archive)
                self._headers = {name: self._header(archive, name) for name in self._entries}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if isinstance(header := self._headers[name], DataError):
            raise header
        with open_ordinary(self._path, kind=DataError) as stream, self._refusing(self._where(name)):
            if not self._entries:
                alone: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
                return alone
            with self._archive(stream) as archive, archive.open(self._entries[name]) as part:
                array: NDArray[Any] = npy.read_array(part, allow_pickle=False)
                return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By name, of all arrays. Raises DataError where an entry that is called as an array cannot be read as one."""
        found = {}
        for name, header in self._headers.items():
            if isinstance(header, Header):
                found[name] = header.shape
            elif self._entries[name].filename.endswith(".npy"):
                raise header
        return found

    @contextmanager
    def _archive(self, stream: IO[bytes]) -> Iterator[zipfile.ZipFile]:
        cannot = f"{self._path} cannot be read as .npz"
        if not _ends_as_archive(stream):
            raise DataError(f"{cannot}: it is none, or is cut off, or its list of entries is longer than any needs.")
        try:
            archive = zipfile.ZipFile(stream)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, struct.error) as error:
            raise DataError(f"{cannot}: {error}.") from error
        with archive:
            yield archive

    def _directory(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """The entries by name, none of them expanded."""
        entries = archive.infolist()
        for name, count in Counter(map(_name, entries)).items():
            if count > 1:
                raise DataError(f"{self._path} has {count} entries called {name!r}, and nothing tells which is meant.")
        self._check_size(sum(entry.file_size for entry in entries))
        return {_name(entry): entry for entry in entries}

    def _check_size(self, size: int) -> None:
        if size > MOST_BYTES:
            raise DataError(
                f"{self._path} expands to {size:,} bytes; at most {MOST_BYTES:,} are read. Give fewer samples, or a "
                "folder of images."
            )

    def _header(self, archive: zipfile.ZipFile, name: str) -> Header | DataError:
        """The header of an entry, or what is wrong with it, which matters only once it is asked for."""
        where, entry = self._where(name), self._entries[name]
        if entry.flag_bits & 1:
            return DataError(f"{where} is encrypted; save it without a password.")
        if entry.compress_type not in _COMPRESSIONS:
            return DataError(f"{where} is compressed as numpy never does ({entry.compress_type}); save it again.")
        try:
            with self._refusing(where), archive.open(entry) as part:
                return read_header(part, entry.file_size, where)
        except DataError as error:
            return error

    def _where(self, name: str) -> str:
        return f"{self._path}: the entry {name!r}" if self._entries else str(self._path)

    @contextmanager
    def _refusing(self, where: str) -> Iterator[None]:
        """What zipfile, zlib and numpy find wrong with the bytes of an array."""
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{where} is damaged: {str(error).rstrip('.')}.") from error


def _ends_as_archive(stream: IO[bytes]) -> bool:
    """Whether a file ends as an archive does, with a list of entries that may be read whole."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, end - _END.size - 2**16))
    tail = stream.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + _END.size > len(tail):
        return False
    *_, size, _, _ = _END.unpack_from(tail, place)
    # A second, longer form of the end stands in front of it where there is one, and numpy needs none below MOST_BYTES.
    return bool(size <= MOST_DIRECTORY) and tail[max(0, place - 20) : place][:4] != b"PK\x06\x07"


def _name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")
