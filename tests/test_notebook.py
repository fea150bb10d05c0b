"""The notebook runs from top to bottom, and is kept without outputs."""

import json

import pytest

from .graphs import REPOSITORY

PATH = REPOSITORY / "samples" / "notebook.ipynb"


def test_it_holds_no_outputs() -> None:
    cells = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel's own, none of ours
def test_it_runs() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tables = [out["data"].get("text/html", "") for out in code[2].outputs if "data" in out]
    assert any("<th>ort</th><th>compact</th>" in table for table in tables)
    top1 = float(code[5].outputs[-1]["data"]["text/plain"])
    assert top1 > 0.9
