"""Reports as JSON: numbers that JSON lacks become null."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from onnxdfq.model_file import atomic_write

FORMAT = "onnxdfq report"
VERSION = 1


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON has them; NaN and infinity become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def write_json(path: Path, values: Mapping[str, Any], *, force: bool) -> None:
    """One object in a file, that says what it is.

    Raises:
        OutputError: The file cannot be written.
    """
    head = {"format": FORMAT, "version": VERSION}
    with atomic_write(path, force=force) as temporary:
        temporary.write_text(json.dumps(head | plain(values), allow_nan=False), encoding="utf-8")
