"""The README is short; what its tables told is told on the pages; and the commands of all of them exist."""

import json
import re
from importlib import import_module

import pytest
from click.testing import CliRunner

from docs.generate.figures import written_pages
from onnxdfq.cli.main import main

from .graphs import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LONGEST = 120  # lines


def test_the_readme_is_short_and_has_one_table() -> None:
    assert len(README.splitlines()) <= LONGEST
    assert len(re.findall(r"^\|---", README, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("script", "table", "page"),
    [
        ("low_bits.run", "overview", "README.md"),
        ("accuracy.run", "table", "docs/expect/accuracy.md"),
        ("low_bits.run", "table", "docs/expect/accuracy.md"),
        ("low_bits.run", "efforts", "docs/expect/effort.md"),
        ("detection.run", "table", "docs/expect/accuracy.md"),
        ("synthesis.compare", "table", "docs/expect/images.md"),
        ("dfmpc.run", "summary", "docs/methods/dfmpc.md"),
        ("saturation.run", "table", "docs/expect/saturation.md"),
        ("any_model.run", "table", "docs/expect/any-model.md"),
        ("agreement.run", "table", "docs/expect/agreement.md"),
    ],
)
def test_every_figure_comes_from_a_results_file(script: str, table: str, page: str) -> None:
    results = json.loads((REPOSITORY / "samples" / script.split(".")[0] / "results.json").read_text())
    assert {"command", "date", "versions", "hardware"} <= set(results)
    command, _, processor = results["command"].partition(" --processor ")  # where it was emulated
    assert f"{command} ".startswith(f"python -m samples.{script} ") and (not processor or "emulated" in processor)
    assert all({"seed", "seconds"} <= set(row) for row in results["rows"])
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert getattr(import_module(f"samples.{script}"), table)(results["rows"]) in text


TORCHRUN = {"--max-restarts", "--nnodes", "--nproc-per-node", "--rdzv-endpoint"}


def test_every_option_of_the_pages_exists() -> None:
    said = "".join(CliRunner().invoke(main, [command, "--help"]).output for command in main.commands)
    text = "".join(page.read_text(encoding="utf-8") for page in written_pages())
    options = set(re.findall(r"`(--[a-z-]+)", text))
    assert len(options) > 30
    assert options - TORCHRUN <= set(re.findall(r"--[a-z-]+", said)) | {"--help"}


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert targets >= {"demo", "test", "bench", "test-slow", "fuzz", "docs"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
