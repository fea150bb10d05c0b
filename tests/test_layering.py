"""The layers turn one way: told by import-linter's contracts, and by what an import really loads."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# passes are imported by whoever edits a model, without the seconds that torch takes.
EVERY_PASS = """
import importlib, pkgutil, sys
import passes
for module in pkgutil.walk_packages(passes.__path__, "passes."):
    importlib.import_module(module.name)
heavy = {"torch", "onnxruntime", "onnxsim", "onnxdfq", "click", "sklearn", "scipy"} & set(sys.modules)
print(len([name for name in sys.modules if name.startswith("passes.")]), *sorted(heavy))
"""


def python_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_passes_load_nothing_heavy() -> None:
    run = subprocess.run(
        [sys.executable, "-c", EVERY_PASS],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=python_path(),
    )
    count, *heavy = run.stdout.split()
    assert int(count) >= 3
    assert heavy == []


def test_import_contracts_hold() -> None:
    lint_imports = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not lint_imports.exists():
        pytest.skip("import-linter is not installed: pip install import-linter")
    run = subprocess.run(
        [str(lint_imports), "--no-cache"],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=python_path(),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 broken" in run.stdout
