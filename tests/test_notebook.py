"""The notebooks run from top to bottom, and are kept without outputs."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from .graphs import REPOSITORY

SAMPLES = REPOSITORY / "samples"
NOTEBOOKS = sorted(SAMPLES.glob("*.ipynb"))


def code_of(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_hold_no_outputs(path: Path) -> None:
    code = code_of(json.loads(path.read_text(encoding="utf-8"))["cells"])
    assert len(code) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def executed(name: str) -> list[Any]:
    """The cells of code of a notebook, once they have run."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(SAMPLES / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    return code_of(notebook.cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own, none of ours
def test_compressing_runs() -> None:
    code = executed("notebook.ipynb")
    tables = [out["data"].get("text/html", "") for out in code[2].outputs if "data" in out]
    assert any("<th>ort</th><th>compact</th>" in table for table in tables)
    top1 = float(code[5].outputs[-1]["data"]["text/plain"])
    assert top1 > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pruning_and_a_zoo_run() -> None:
    code = executed("prune_and_zoo.ipynb")
    fewer = ast.literal_eval(code[2].outputs[-1]["data"]["text/plain"])
    assert 0.3 < fewer["macs"] < 0.9 and 0.3 < fewer["weights"] < 0.9
    top1 = ast.literal_eval(code[-1].outputs[-1]["data"]["text/plain"])
    assert set(top1) == {"float", "pruned"} and min(top1.values()) > 0.9
