"""The command line in this process, and the sample network as a file of the user's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from onnxdfq.cli.main import main

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
QUICK = ["--method", "noise", "--images", "16"]

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(DIGITS / "digits.onnx", tmp_path / "digits.onnx"))


@pytest.fixture
def refused(cli: Cli) -> Callable[..., str]:
    """Runs a command that must fail; returns the one sentence it says."""

    def run(*arguments: Any, code: int = 2) -> str:
        result = cli(*arguments)
        assert result.exit_code == code, result.output
        assert result.stdout == "" and "Traceback" not in result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.strip()

    return run


def folder(path: Path) -> set[str]:
    """Names of what lies in it."""
    return {entry.name for entry in path.iterdir()}
