"""The README tells what the results files tell, and its commands exist."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxdfq.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("accuracy.run", "table"),
        ("synthesis.compare", "table"),
        ("low_bits.run", "table"),
        ("low_bits.run", "others"),
        ("low_bits.run", "efforts"),
        ("dfmpc.run", "summary"),
        ("detection.run", "table"),
        ("saturation.run", "table"),
        ("any_model.run", "table"),
    ],
)
def test_every_figure_comes_from_a_results_file(script: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    results = json.loads((REPOSITORY / "samples" / script.split(".")[0] / "results.json").read_text())
    assert {"command", "date", "versions", "hardware"} <= set(results)
    command, _, processor = results["command"].partition(" --processor ")  # where it was emulated
    assert command == f"python -m samples.{script}" and (not processor or "emulated" in processor)
    assert all({"seed", "seconds"} <= set(row) for row in results["rows"])
    assert getattr(import_module(f"samples.{script}"), table)(results["rows"]) in README


def test_every_option_of_the_readme_exists() -> None:
    said = "".join(CliRunner().invoke(main, [command, "--help"]).output for command in main.commands)
    options = set(re.findall(r"`(--[a-z-]+)", README))
    assert len(options) > 10
    assert options <= set(re.findall(r"--[a-z-]+", said)) | {"--help"}


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README)) - {"it"}
    assert targets >= {"demo", "test", "bench", "test-slow"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
