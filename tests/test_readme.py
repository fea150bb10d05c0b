"""The README tells what the results files tell, and its commands exist."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxdfq.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_accuracy_figure_comes_from_the_results_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from samples.accuracy.run import table

    results = json.loads((REPOSITORY / "samples" / "accuracy" / "results.json").read_text())
    assert {"command", "date", "versions", "hardware"} <= set(results)
    assert all({"seed", "seconds"} <= set(row) for row in results["rows"])
    assert table(results["rows"]) in README


def test_every_option_of_the_readme_exists() -> None:
    said = "".join(
        CliRunner().invoke(main, [command, "--help"]).output
        for command in ("compress", "synthesize", "evaluate", "inspect")
    )
    options = set(re.findall(r"`(--[a-z-]+)", README))
    assert len(options) > 10
    assert options <= set(re.findall(r"--[a-z-]+", said)) | {"--help"}


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README)) - {"it"}
    assert targets >= {"demo", "test", "bench", "test-slow"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
