"""Tables of figures in the pages. Each stands behind a comment that says which rows of a results file it shows:

    <!-- figures
    file = "accuracy/results.json"
    where = { method = "dgh", bits = ["w8a8", "w4a8"] }
    columns = { model = "model", bits = "bits", float = "top1_float", compressed = "top1", drop = "drop_points" }
    -->

or that a function of a sample makes it of the sample's own results: `table = "accuracy.run.table"`.
`python -m docs.generate.figures` writes all of them anew, and a test holds them against the files: so they can be read
without a build, and nobody types a figure.

Rows that differ in nothing but what was measured (seeds) are averaged.
"""

import json
import re
import tomllib
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from docs.generate.markdown import plain, table

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "samples"
END = "<!-- end of figures -->"
FIGURES = re.compile(rf"^(<!-- figures\n(.*?)^-->\n).*?^{END}$", re.MULTILINE | re.DOTALL)
PERCENT = ("top1", "top1_float", "agreement", "confident", "map", "map_float", "same_outputs")
FINE = ("bn_distance",)
TOLD = ("command", "date", "versions", "hardware", "rows")


def written_pages() -> list[Path]:
    """The pages that people write: the README, and what lies in `docs/`."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def with_figures(text: str) -> str:
    """A page with its tables as the results files give them.

    Raises:
        ValueError: a page asks for rows or columns that its results file does not have.
    """
    return FIGURES.sub(lambda found: f"{found[1]}\n{_figures(tomllib.loads(found[2]))}\n\n{END}", text)


def without_figures(text: str) -> str:
    """What people wrote of a page."""
    return FIGURES.sub("", text)


def _figures(asked: dict[str, Any]) -> str:
    module, _, function = asked.get("table", "").rpartition(".")
    sample = import_module(f"samples.{module}") if module else None
    file = asked["file"] if sample is None else sample.RESULTS.relative_to(SAMPLES).as_posix()
    results = json.loads((SAMPLES / file).read_text(encoding="utf-8"))
    rows = results["rows"] if sample else [row for row in results["rows"] if _wanted(row, asked.get("where", {}))]
    made = getattr(sample, function)(rows) if sample else _of_columns(asked, rows)
    runs = dict.fromkeys(_told(row.get("run", results)) for row in rows)
    return f"{made}\n\n*From `samples/{file}`: {'; '.join(runs)}.*"


def _told(run: dict[str, Any]) -> str:
    """What made rows."""
    counts = [f"{plain(key)}: {value}" for key, value in run.items() if key not in TOLD and type(value) is int]
    return ", ".join([f"`{run['command']}`", run["date"], plain(run["hardware"]), *counts])


def _of_columns(asked: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    columns: dict[str, str] = asked["columns"]
    if not rows or any(all(key not in row for row in rows) for key in columns.values()):
        raise ValueError(
            f"samples/{asked['file']} holds no {' or no '.join(columns.values())} {asked.get('where', '')}"
        )
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        values = [row.get(key) for key in columns.values()]
        groups.setdefault(tuple(str(value) for value in values if not isinstance(value, float)), []).append(row)
    repeated = any(len(found) > 1 for found in groups.values())
    lines = []
    for found in groups.values():
        cells = [_cell(key, [row.get(key) for row in found]) for key in columns.values()]
        lines.append([*cells, str(len(found))] if repeated else cells)
    head = [*columns, "runs"] if repeated else [*columns]
    return table(list(map(plain, head)), lines)


def _wanted(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(row.get(key) in (value if isinstance(value, list) else [value]) for key, value in where.items())


def _cell(key: str, values: list[Any]) -> str:
    """A figure as people read it, the mean where there are several; a sentence that stands in its place as it is."""
    first = values[0]
    if isinstance(first, dict):  # counts by name
        return plain(", ".join(f"{count} {name}" for name, count in first.items())) or "–"
    if not isinstance(first, float):
        return "–" if first is None else f"{first:,}" if isinstance(first, int) else plain(str(first))
    mean = fmean(values)
    if key in PERCENT:
        return f"{100 * mean:.2f} %"
    return f"{mean:.4f}" if key in FINE else f"{mean:.1f}" if key.startswith(("sqnr", "seconds")) else f"{mean:.2f}"


if __name__ == "__main__":
    for page in written_pages():
        page.write_text(with_figures(page.read_text(encoding="utf-8")), encoding="utf-8")
