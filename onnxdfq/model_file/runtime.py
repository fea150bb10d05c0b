"""Options of every ONNX Runtime session: quiet, and with the libraries of custom operators that the user named."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from onnxdfq.errors import InputError
from onnxdfq.paths import check_ordinary

_LIBRARIES: ContextVar[tuple[str, ...]] = ContextVar("op_libraries", default=())


@contextmanager
def op_libraries(paths: Sequence[Path | str]) -> Iterator[None]:
    """Within it, sessions know the custom operators of these shared libraries.

    A library is code that runs: only those are loaded that the user names, never one that a model asks for.

    Raises:
        InputError: A path is no ordinary file, or ONNX Runtime does not take it.
    """
    for path in paths:
        if not check_ordinary(Path(path), called=f"The library of operators {path}"):
            raise InputError(f"The library of operators {path} is empty.", field="op_library")
    token = _LIBRARIES.set(tuple(str(Path(path).resolve()) for path in paths))
    try:
        if paths:
            session_options()
        yield
    finally:
        _LIBRARIES.reset(token)


def session_options() -> Any:
    """New options that log nothing but what is fatal: faults are reported by exceptions.

    Raises:
        InputError: ONNX Runtime does not take a library.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if hasattr(os, "sched_getaffinity") and (allowed := len(os.sched_getaffinity(0))) < (os.cpu_count() or 1):
        options.intra_op_num_threads = allowed  # else one for each processor of the machine, on these few
    options.add_session_config_entry("session.load_model_format", "ONNX")  # whatever the name of the file ends with
    for library in _LIBRARIES.get():
        try:
            options.register_custom_ops_library(library)
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            raise InputError(
                f"{library} is no library of ONNX Runtime operators: {reason_of(error)}", field="op_library"
            ) from error
    return options


def lean_options() -> Any:
    """`session_options` for a network that hardly fits into memory: its weights are mapped from the file, and neither
    fused, packed nor dequantized ahead; each node runs as late as it can.

    Raises:
        InputError: As `session_options` does.
    """
    import onnxruntime

    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def reads_beside(options: Any, path: Path) -> None:
    """A model that is given as bytes then has its external data in the folder of the file `path`."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))


def named_libraries() -> tuple[str, ...]:
    """Paths of the libraries that the user named."""
    return _LIBRARIES.get()


def reason_of(error: Exception) -> str:
    """The first line of what ONNX Runtime says, without its own marks; a sentence."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", lines[0] if lines else "")
    text = text.strip() or type(error).__name__
    return text if text.endswith(".") else f"{text}."
