"""Paths that a user gives: only ordinary files and folders are opened, and no more is read than a file may have."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from onnxdfq.errors import InputError

MOST_TEXT = 2**20
"""Bytes of a file that people write: a recipe, a plan, a target."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def look_at(
    path: Path,
    *,
    called: str | None = None,
    missing: str = "there is no such file",
    kind: type[InputError] = InputError,
) -> os.stat_result:
    """What lies at a path, links followed; nothing is opened.

    Args:
        path: Given by the user.
        called: How messages call it; by default as it is.
        missing: What they say where nothing lies there.
        kind: Of the error.

    Raises:
        InputError: Nothing lies there, or the path is none.
    """
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise kind(f"{called or path}: {reason_of(error, missing)}.") from error


def check_ordinary(
    path: Path, *, most: int | None = None, called: str | None = None, kind: type[InputError] = InputError
) -> int:
    """The size in bytes of an ordinary file; nothing is opened.

    Args:
        path: Given by the user.
        most: Bytes that it may have; None where it is not read into memory.
        called: How messages call it; by default as it is.
        kind: Of the error.

    Raises:
        InputError: It is missing, too large, or a folder, a pipe or a device, which reading could wait for endlessly.
    """
    return _size(look_at(path, called=called, kind=kind), most, called or str(path), kind)


def open_ordinary(
    path: Path, *, most: int | None = None, called: str | None = None, kind: type[InputError] = InputError
) -> BinaryIO:
    """An ordinary file that is not empty, opened for reading.

    Args:
        path, most, called, kind: As for `check_ordinary`.

    Raises:
        InputError: As `check_ordinary` does, and where it is empty or cannot be read.
    """
    check_ordinary(path, most=most, called=called, kind=kind)
    try:
        # What was put there since the look must not be waited for, either.
        stream = os.fdopen(os.open(path, _FLAGS), "rb")
    except OSError as error:
        raise kind(f"{called or path} cannot be read: {reason_of(error)}.") from error
    try:
        if _size(os.fstat(stream.fileno()), most, called or str(path), kind) == 0:
            raise kind(f"{called or path} is empty.")  # or a file of the system, which may have no end
    except InputError:
        stream.close()
        raise
    return stream


def read_ordinary(path: Path, *, most: int, called: str | None = None, kind: type[InputError] = InputError) -> bytes:
    """All bytes of an ordinary file. Raises InputError as `open_ordinary` does, but for an empty one."""
    if check_ordinary(path, most=most, called=called, kind=kind) == 0:
        return b""
    with open_ordinary(path, most=most, called=called, kind=kind) as stream:
        try:
            return stream.read(most)
        except OSError as error:
            raise kind(f"{called or path} cannot be read: {reason_of(error)}.") from error


def _size(found: os.stat_result, most: int | None, called: str, kind: type[InputError]) -> int:
    if not stat.S_ISREG(found.st_mode):
        raise kind(f"{called} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no file')}; give an ordinary file.")
    if most is not None and found.st_size > most:
        raise kind(f"{called} has {found.st_size:,} bytes; at most {most:,} are read.")
    return found.st_size


def reason_of(error: OSError | ValueError, missing: str = "there is no such file") -> str:
    """Why a path cannot be used, as the end of a sentence."""
    if isinstance(error, UnicodeEncodeError):
        return "its name is not UTF-8"
    if isinstance(error, ValueError):
        return "no path holds a NUL character"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return missing
        case errno.ELOOP:
            return "its links lead in a circle"
        case errno.ENAMETOOLONG:
            return "the name is too long"
        case errno.EACCES | errno.EPERM:
            return "you have no permission"
        case _:
            return error.strerror or type(error).__name__
