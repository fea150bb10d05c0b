"""Writing files so that a reader sees the whole new file or the old one, never half of either."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from onnxdfq.errors import OutputError
from onnxdfq.paths import reason_of
from onnxdfq.scratch import scratch_folder
from onnxdfq.signals import raise_what_came, uninterrupted, written

_NUMBERED = re.compile(r"[0-9]{5}\.png")
_DISK_AT_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def check_writable(path: Path, *, force: bool = False) -> None:
    """Refuses a path that cannot be written; to be called before the work whose result goes there.

    Args:
        path: Of the file to write.
        force: Whether an existing file may be replaced.

    Raises:
        OutputError: `path` exists without `force`, is no ordinary file, or its folder is absent or not writable.
    """
    try:
        str(path).encode()  # ONNX Runtime opens no other
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {reason_of(error)}; give another name.") from error
    if not path.parent.is_dir():
        lies = "is no folder; choose another" if path.parent.exists() else "does not exist; create it first"
        raise OutputError(f"{path} cannot be written: the folder {path.parent} {lies}.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is not writable; choose another folder.")
    if path.is_dir() or not path.name:
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not an ordinary file; give another name.")
    if (path.exists() or path.is_symlink()) and not force:
        raise OutputError(f"{path} exists; give another name with -o, or --force to replace it.")
    with _as_output_error(path), tempfile.TemporaryFile(dir=path.parent):
        pass  # a folder of the system takes no files, whatever its permissions say


def check_folder(path: Path) -> None:
    """Refuses a path that is no folder for files, and cannot become one; to be called before the work.

    Raises:
        OutputError: `path` is something else, or it, or the folder that it would be made in, takes no files.
    """
    try:
        exists, what = path.exists(), path if path.is_dir() else path.parent
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} cannot be written: {reason_of(error)}; give another name.") from error
    if exists and not path.is_dir():
        raise OutputError(f"{path} is no folder; give the name of one.")
    if not what.is_dir():
        raise OutputError(f"The folder {path} cannot be made: the folder {what} does not exist; create it first.")
    if not os.access(what, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: the folder {what} is not writable; choose another folder.")


def check_replaceable(path: Path, *, force: bool = False) -> None:
    """Refuses a path that a folder of pictures cannot take; to be called before the work whose result goes there.

    Args:
        path: Of the folder to write.
        force: Whether a folder that holds numbered pictures alone, as this one will, may be replaced.

    Raises:
        OutputError: as `check_writable`; and something else lies in the folder.
    """
    if not path.is_dir() or path.is_symlink():
        check_writable(path, force=False)
        return
    with _as_output_error(path):
        strange = next((entry for entry in path.iterdir() if not _NUMBERED.fullmatch(entry.name)), None)
    if strange is not None:
        raise OutputError(f"{path} holds {strange.name!r}, which a folder of pictures does not; give another name.")
    if not force:
        raise OutputError(f"{path} exists; give another name with -o, or --force to replace it.")


def make_folder(path: Path) -> None:
    """Makes a folder for files, where it is not there yet.

    Raises:
        OutputError: As `check_folder` does, and with exit code 1 where the disk is full or fails.
    """
    check_folder(path)
    with _as_output_error(path):
        path.mkdir(exist_ok=True)


@contextmanager
def atomic_write(path: Path, *, force: bool = False, told: bool = True) -> Iterator[Path]:
    """Yields a temporary path of the same name; the file there is renamed to `path` when the block ends.

    Any exception, KeyboardInterrupt included, removes the temporary file.

    Args:
        path: Of the file to write.
        force: Whether an existing file may be replaced.
        told: Whether it is a result, which an interruption tells of.

    Raises:
        OutputError: With exit code 2 as `check_writable` does, with 1 where the disk is full or fails.
    """
    with staging(force=force, told=told) as staged, staged.file(path) as temporary:
        yield temporary


@contextmanager
def staging(*, force: bool = False, told: bool = True) -> Iterator["Staged"]:
    """Files that are written aside: all take their places when the block ends, or none does.

    Args:
        force: Whether existing files may be replaced.
        told: As for `atomic_write`.

    Raises:
        OutputError: One of them cannot take its place.
    """
    with ExitStack() as stack:
        staged = Staged(stack, force=force, told=told)
        yield staged
        staged.take_places()


class Staged:
    """The files of one run, in hidden folders beside their places; `staging` makes it.

    Args:
        stack: Removes the folders.
        force: Whether existing files may be replaced.
        told: As for `atomic_write`.
    """

    def __init__(self, stack: ExitStack, *, force: bool, told: bool) -> None:
        self._stack = stack
        self._force, self._told = force, told
        self._folders: dict[Path, Path] = {}  # by the folder that they lie in
        self._files: dict[Path, Path] = {}  # by their places, in the order in which they take them

    @contextmanager
    def file(self, place: Path) -> Iterator[Path]:
        """Yields a temporary path of the same name, for what is to lie at `place`.

        Raises:
            OutputError: As `atomic_write` does, and where another file of the run is to lie there.
        """
        check_writable(place, force=self._force)
        with _as_output_error(place):
            temporary = self._folder(place.parent.resolve()) / place.name
            if temporary.exists():
                raise OutputError(f"{place} cannot take two files of one run; give one of them another name.")
            # Created here, not by the caller, so that what cannot be written shows before any work is done.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _flush(temporary)
        self._files[place] = temporary

    @contextmanager
    def folder(self, place: Path) -> Iterator[Path]:
        """Yields a temporary folder for pictures `00000.png` and so on, that are to lie in `place`.

        Raises:
            OutputError: As `check_replaceable` does.
        """
        check_replaceable(place, force=self._force)
        with _as_output_error(place):
            temporary = self._folder(place.parent.resolve()) / place.name
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
        self._files[place] = temporary

    def where(self, place: Path) -> Path:
        """The file that is to take this place."""
        return self._files[place]

    def take_places(self) -> None:
        """Renames every file to its place. Raises OutputError: one cannot be; then all is again as it was before."""
        for place, file in self._files.items():
            check = check_replaceable if file.is_dir() else check_writable
            check(place, force=self._force)
        with uninterrupted(), ExitStack() as undo:
            raise_what_came()
            for place, file in self._files.items():
                with _as_output_error(place):
                    model = place.with_suffix("")
                    if place.suffix == ".data" and model in self._files:
                        # In between, a model must not lie beside the weights of another.
                        self._keep(model, undo)
                        model.unlink(missing_ok=True)
                    keep = self._keep_folder if file.is_dir() else self._keep
                    keep(place, undo)
                    file.replace(place)
            undo.pop_all()
            if self._told:
                written.extend(self._files)

    def _folder(self, place: Path) -> Path:
        if place not in self._folders:
            self._folders[place] = self._stack.enter_context(scratch_folder(place))
        return self._folders[place]

    def _keep(self, place: Path, undo: ExitStack) -> None:
        """Has what lies at the place now put there again, should a later file not take its own place."""
        if len(self._files) == 1:
            return
        if not (place.exists() or place.is_symlink()):
            undo.callback(place.unlink, missing_ok=True)
            return
        old = self._stack.enter_context(scratch_folder(place.parent)) / place.name
        try:
            os.link(place, old, follow_symlinks=False)
        except OSError:  # not every file system has links
            shutil.copy2(place, old, follow_symlinks=False)
        undo.callback(old.replace, place)

    def _keep_folder(self, place: Path, undo: ExitStack) -> None:
        """`_keep`, of a folder, which makes room for the new one."""
        if place.exists():
            old = self._stack.enter_context(scratch_folder(place.parent)) / place.name
            place.replace(old)
            undo.callback(old.replace, place)
        undo.callback(shutil.rmtree, place, ignore_errors=True)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _DISK_AT_FAULT
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        advice = "nothing was written" if full else "choose another folder"
        raise OutputError(f"{path} cannot be written: {reason}; {advice}.", exit_code=1 if full else 2) from error


def _flush(file: Path) -> None:
    """Forces a file onto the disk before it is renamed: after a power cut the name must not point at an empty file."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
