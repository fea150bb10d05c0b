"""Writing files so that a reader sees the whole new file or the old one, never half of either."""

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdfq.errors import OutputError
from onnxdfq.model_file.through_proto import infer_shapes, weight_bytes
from onnxdfq.paths import reason_of

# Protobuf ends at 2**31 bytes. The margin is for everything in the file that is not a weight.
INLINE_LIMIT = 2**31 - 2**26

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


def is_large(model: ir.Model) -> bool:
    """Whether the weights exceed one protobuf, so that they have to lie in a file of their own."""
    return weight_bytes(model) > INLINE_LIMIT


@contextmanager
def atomic_write(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the same folder, of the same suffix; it is renamed to `path` when the block ends.

    Any exception, KeyboardInterrupt included, removes the temporary file.

    Args:
        path: Of the file to write.
        force: Whether an existing file may be replaced.

    Raises:
        OutputError: With exit code 2 as `check_writable` does, with 1 where the disk is full or fails.
    """
    check_writable(path, force=force)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    with _as_output_error(path):
        try:
            # Created here, not by the caller, so that an unwritable folder shows before any work is done.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            yield temporary
            _flush(temporary)
            check_writable(path, force=force)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def save_model(model: ir.Model, path: Path, *, force: bool = False, inner_shapes: bool = True) -> None:
    """Writes the model with inferred shapes, after onnx.checker (full check) and strict shape inference pass.

    Weights beyond 2 GB go to `<name>.data` beside it.

    Args:
        model: Gains the inferred shapes and stays the same otherwise.
        path: Of the file to write.
        force: Whether an existing file may be replaced.
        inner_shapes: Whether the file holds the shapes of inner values, which viewers show and loaders infer; a large
            model's file always does.

    Raises:
        OutputError: As `atomic_write` does, and with exit code 1 where the model is not valid ONNX.
    """
    check_writable(path, force=force)
    try:
        infer_shapes(model, strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise _invalid(path, error) from error
    if is_large(model):
        _save_with_external_data(model, path, force)
        return
    with atomic_write(path, force=force) as temporary:
        proto = ir.to_proto(model)
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise _invalid(path, error) from error
        if not inner_shapes:
            del proto.graph.value_info[:]
        temporary.write_bytes(proto.SerializeToString(deterministic=True))


def _save_with_external_data(model: ir.Model, path: Path, force: bool) -> None:
    data = path.with_name(path.name + ".data")
    check_writable(data, force=force)
    folder = path.with_name(f".{path.stem}.{secrets.token_hex(4)}")
    with _as_output_error(path):
        try:
            folder.mkdir()
            ir.save(model, folder / path.name, external_data=data.name)
            try:
                onnx.checker.check_model(folder / path.name, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
                raise _invalid(path, error) from error
            for file in (folder / data.name, folder / path.name):
                _flush(file)
            (folder / data.name).replace(data)
            (folder / path.name).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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


def _invalid(path: Path, error: Exception) -> OutputError:
    first_line = str(error).strip().splitlines()[0]
    return OutputError(f"{path} was not written, because the model is not valid ONNX: {first_line}", exit_code=1)
