"""Writing files so that a reader sees the whole new file or the old one, never half of either."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxdfq.errors import OutputError
from onnxdfq.model_file.through_proto import infer_shapes, weight_bytes

# Protobuf ends at 2**31 bytes. The margin is for everything in the file that is not a weight.
INLINE_LIMIT = 2**31 - 2**26

_DISK_AT_FAULT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def check_writable(path: Path, *, force: bool = False) -> None:
    """Raises OutputError if `path` plainly cannot be written: to be called before the work, not after it."""
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: the folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: the folder {path.parent} is not writable; choose another folder.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not an ordinary file; give another name.")
    if (path.exists() or path.is_symlink()) and not force:
        raise OutputError(f"{path} exists; give another name with -o, or --force to replace it.")


def is_large(model: ir.Model) -> bool:
    """Whether the weights are too many for one protobuf and have to lie in a file of their own."""
    return weight_bytes(model) > INLINE_LIMIT


@contextmanager
def atomic_write(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a fresh path in the same folder (same suffix) to write to; it becomes `path` when the block ends well.

    Any exception, KeyboardInterrupt included, removes what was written. Raises OutputError: exit code 2 when `path`
    is at fault (it exists and `force` is off, its folder is absent or not writable), 1 when the disk is.
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
    """Writes the model with inferred shapes, after onnx.checker (full check) and strict shape inference passed.

    inner_shapes: those of values inside too, which viewers show and loaders infer; never left out of a large model.
    Weights beyond 2 GB go to `<name>.data` beside it. The model gains the inferred shapes and is else unchanged.
    Raises OutputError as `atomic_write` does, and with exit code 1 when the model is not valid ONNX.
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
    """On the disk before it is renamed: after a power cut the name must not point at an empty file."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _invalid(path: Path, error: Exception) -> OutputError:
    first_line = str(error).strip().splitlines()[0]
    return OutputError(f"{path} was not written, because the model is not valid ONNX: {first_line}", exit_code=1)
