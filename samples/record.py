"""Results files: figures with everything that is needed to doubt or repeat them."""

import json
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("onnxdfq", "onnx", "onnxruntime", "onnxsim", "onnx-ir", "torch", "numpy")


def write_results(path: Path, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Write `rows` to a JSON file with command, versions, hardware and date. Each row names its seed and seconds.

    Rows of `read_rows` keep what was told of their own run.
    """
    module = Path(sys.argv[0]).resolve().relative_to(Path.cwd().resolve()).with_suffix("")
    module = module.parent if module.name == "__main__" else module
    document = {
        "command": shlex.join(["python", "-m", ".".join(module.parts), *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "hardware": hardware(),
        **facts,
        "rows": rows,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Those that runs before have written, each with what is told of its `run`; none where there is no file."""
    if not path.exists():
        return []
    run = json.loads(path.read_text(encoding="utf-8"))
    rows: list[dict[str, Any]] = run.pop("rows")
    return [{**row, "run": row.get("run", run)} for row in rows]


def hardware() -> str:
    """Processor, threads that torch uses, and GPU if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}"
