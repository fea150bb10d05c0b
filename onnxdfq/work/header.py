"""What a checkpoint says of itself, read without its tensors and without torch."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from onnxdfq.errors import InputError

NAME = "onnxdfq"  # the one entry of the file's header


def read_header(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: key, done, about, facts. Raises InputError where the file is none."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})[NAME])
        return {name: header[name] for name in ("key", "done", "about", "facts")}
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is no checkpoint of onnxdfq; remove it, or name another folder.") from error
