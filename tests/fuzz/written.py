"""A look into what a command wrote, by ONNX Runtime alone."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort


def look(source: Path, written: Path) -> None:
    """Prints what is wrong with a written model, in a line: it does not load, does not run, or computes no numbers.

    The latter two only where the model that it was made of does run and computes numbers.
    """
    try:
        session = open_model(written)
    except Exception as error:  # onnxruntime's own exceptions share no base class but this
        print(f"does not load: {_line(error)}")
        return
    given = feeds(session)
    try:
        wanted = open_model(source).run(None, given)
    except Exception:
        return
    try:
        found = session.run(None, given)
    except Exception as error:
        print(f"does not run: {_line(error)}")
        return
    if _finite(wanted) and not _finite(found):
        print("computes NaN or infinity, the float model does not")


def open_model(path: Path) -> ort.InferenceSession:
    """One thread, and nothing on stderr."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(session: ort.InferenceSession, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal numbers for floats, zeros for all else; sizes that are open are 1."""
    random, found = np.random.default_rng(seed), {}
    for value in session.get_inputs():
        sizes = [size if isinstance(size, int) else 1 for size in value.shape]
        drawn: Any = random.normal(size=sizes) if value.type in _FLOATS else np.zeros(sizes)
        found[value.name] = np.asarray(drawn).astype(_TYPES.get(value.type, np.float32))
    return found


_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)"}
_TYPES = {
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def _finite(values: list[Any]) -> bool:
    return all(
        np.isfinite(value).all() for value in values if isinstance(value, np.ndarray) and value.dtype.kind == "f"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
