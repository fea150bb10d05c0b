"""ONNX Runtime reports nothing of a user's models."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os, onnxdfq.evaluation.session, onnxruntime
print(len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1)
"""


def test_onnxruntime_starts_no_thread_and_writes_no_file_when_it_is_imported(tmp_path: Path) -> None:
    places = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | places
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []
