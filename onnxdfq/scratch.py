"""Scratch folders: gone when their owner is done with them, and swept by the next one where it was killed.

The owner holds a lock on its folder that ends with it, however it ends. A folder without a lock is left over.
"""

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from onnxdfq.errors import OutputError
from onnxdfq.signals import uninterrupted

try:
    import fcntl
except ImportError:  # Windows: nothing tells what is left over from what is in use, and nothing is swept
    fcntl = None  # type: ignore[assignment]

_LEFT_OVER = re.compile(r"\.?onnxdfq-[0-9a-f]{16}\.tmp")


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """Yields a new, empty folder for this user alone; it goes with all that it holds when the block ends.

    What killed owners left in the same place is swept first.

    Args:
        place: The folder to make it in, where it is hidden; by default the system's temporary folder.

    Raises:
        OutputError: The temporary folder takes none (exit code 1).
        OSError: `place` takes none.
    """
    with ExitStack() as stack:
        if place is not None:
            yield _made(place, ".onnxdfq-", stack)
            return
        try:
            folder = _made(temporary_folder(), "onnxdfq-", stack)
        except OSError as error:
            raise OutputError(
                f"The temporary folder takes no files: {error.strerror or error}; set TMPDIR to a folder with room.",
                exit_code=1,
            ) from error
        yield folder


def sweep(place: Path) -> None:
    """Deletes the scratch folders in `place` whose owners are gone; what cannot be deleted stays."""
    if fcntl is None:
        return
    with suppress(OSError):
        for folder in place.iterdir():
            if _LEFT_OVER.fullmatch(folder.name):
                _sweep_one(folder)


def sweep_all(places: Iterable[Path]) -> None:
    """Deletes what killed owners left in these folders and in the system's temporary folder."""
    with suppress(OSError):
        sweep(temporary_folder())
    for place in places:
        sweep(place)


def temporary_folder() -> Path:
    """The system's, or the one that TMPDIR names. Raises OSError: there is none with room."""
    return Path(tempfile.gettempdir())


def _made(place: Path, prefix: str, stack: ExitStack) -> Path:
    """A new folder that is locked, and that the stack removes."""
    sweep(place)
    with uninterrupted():
        folder = place / f"{prefix}{secrets.token_hex(8)}.tmp"
        folder.mkdir(mode=0o700)
        lock = _lock(folder)
        if lock is None and fcntl is not None:
            # Where no folder can be locked (some network file systems), it gets a name that is never swept.
            with suppress(OSError):
                folder.rmdir()
            folder = folder.with_suffix("")
            folder.mkdir(mode=0o700)
        stack.callback(_remove, folder, lock)
        return folder


def _remove(folder: Path, lock: int | None) -> None:
    with uninterrupted():
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep_one(folder: Path) -> None:
    lock = _lock(folder)
    if lock is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock on this user's own folder; None where there is none to be had."""
    if fcntl is None:
        return None
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held, named = os.fstat(lock), os.lstat(folder)
        if stat.S_ISDIR(held.st_mode) and held.st_uid == os.geteuid() and os.path.samestat(held, named):
            return lock  # the name still is that of the folder that was locked
    except OSError:
        pass
    os.close(lock)
    return None
