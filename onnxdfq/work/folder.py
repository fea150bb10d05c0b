"""The folder where long stages of a run keep what they found and how far they are, for the same command to go on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxdfq.errors import InputError, OutputError
from onnxdfq.model_file.writing import make_folder
from onnxdfq.work.header import read_header

if TYPE_CHECKING:
    from onnxdfq.work.checkpoint import Checkpoint

try:
    import fcntl
except ImportError:  # Windows: nothing tells whether another run is at work
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".safetensors"
LOCK = ".onnxdfq-lock"
KEY_LENGTH = 16  # of the hexadecimal digits, in a file's name


class WorkFolder:
    """Checkpoints of stages, each under a key of all that it rests on, so that those of several recipes keep apart.

    Args:
        path: Of the folder, which is there.
        subject: What the run is about, as people call it: the model's file.
        tell: Takes a sentence.
    """

    def __init__(self, path: Path, subject: str, tell: Callable[[str], None]) -> None:
        self.path, self._subject, self._tell = path, subject, tell

    def checkpoint(self, stage: str, *rests_on: str | NDArray[Any]) -> Checkpoint:
        """The one of a stage. What lies there of other settings is left where it is, which is told.

        Args:
            stage: Its name, of letters, digits, dots and dashes.
            rests_on: All that it follows from.
        """
        from onnxdfq.work.checkpoint import Checkpoint

        digest = sha256(version("onnxdfq").encode())
        for part in (stage, *rests_on):
            own = part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data
            digest.update(str(len(own)).encode())
            digest.update(own)
        key = digest.hexdigest()
        path = self.path / f"{stage}.{key[:KEY_LENGTH]}{SUFFIX}"
        if not path.exists() and any(self.path.glob(f"{stage}.{'[0-9a-f]' * KEY_LENGTH}{SUFFIX}")):
            self._tell(f"{self.path} keeps {stage} of another model, recipe or version; here it is done anew.")
        return Checkpoint(path, key, about={"stage": stage, "model": self._subject, "version": version("onnxdfq")})


@contextmanager
def work_folder(path: Path | None, subject: str, tell: Callable[[str], None]) -> Iterator[WorkFolder | None]:
    """Makes the folder, and holds it for this run alone; yields None where there is none. For arguments see WorkFolder.

    Raises:
        InputError: Another run is at work in it.
        OutputError: It cannot be made.
    """
    if path is None:
        yield None
        return
    make_folder(path)
    try:
        lock = os.open(path / LOCK, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise OutputError(f"{path} takes no files: {error.strerror}; name another folder.") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"Another run is at work in {path}; wait until it ends, or name another folder.", field="work_dir"
                ) from error
            except OSError:  # some network file systems lock nothing
                pass
        yield WorkFolder(path, subject, tell)
    finally:
        os.close(lock)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One checkpoint of a folder.

    stage, model, version: of the run that made it. done: whether the stage came to its end. bytes: of the file.
    changed: when it was written, UTC, as ISO 8601 has it. file: its name.
    """

    stage: str
    model: str
    version: str
    done: bool
    bytes: int
    changed: str
    file: str


def kept_in(path: Path) -> tuple[Kept, ...]:
    """What a work folder keeps, the newest first. Raises InputError where it is no folder, or keeps nothing."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder; name one that was given as --work-dir.")
    found = []
    for file in path.glob(f"*{SUFFIX}"):
        header, state = read_header(file), file.stat()
        about = {name: str(header["about"].get(name, "")) for name in ("stage", "model", "version")}
        changed = datetime.fromtimestamp(state.st_mtime, UTC).isoformat(timespec="seconds")
        kept = Kept(**about, done=bool(header["done"]), bytes=state.st_size, changed=changed, file=file.name)
        found.append((state.st_mtime_ns, kept))
    if not found:
        raise InputError(f"{path} keeps nothing of onnxdfq; name a folder that was given as --work-dir.")
    # By the file's own clock: what is shown ends at the second, in which a stage or two may be done.
    return tuple(kept for _, kept in sorted(found, key=lambda one: (one[0], one[1].file), reverse=True))
