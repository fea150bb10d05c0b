"""`from passes import ...`: every pass, and none of its weight before it is asked for."""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

import passes


def test_every_pass_is_exported() -> None:
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(passes.__path__, "passes.")]
    members = [(module, member) for module in modules for member in vars(module).values() if isinstance(member, type)]
    found = {
        member.__name__: member
        for module, member in members
        if issubclass(member, ir.passes.PassBase) and member.__module__ == module.__name__
    }
    assert {name: getattr(passes, name) for name in passes.__all__} == found


def test_every_export_is_listed_and_documented() -> None:
    assert set(passes.__all__) <= set(dir(passes))
    assert [name for name in passes.__all__ if not getattr(passes, name).__doc__] == []


def test_an_unknown_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'passes' has no attribute 'Canonicalise'"):
        _ = passes.Canonicalise


def test_the_package_itself_is_light() -> None:
    code = "import sys, passes; print(sorted({'onnx', 'onnx_ir', 'numpy'} & set(sys.modules)))"
    here = {**os.environ, "PYTHONPATH": str(Path(passes.__path__[0]).parent)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=here)
    assert run.stdout.strip() == "[]"
