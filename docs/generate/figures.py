"""Tables of figures, read from the results files of `samples/`: a page says which, and holds no figure itself.

    ```figures
    file = "accuracy/results.json"
    where = { method = "dgh", bits = ["w8a8", "w4a8"] }
    columns = { model = "model", bits = "bits", float = "top1_float", compressed = "top1", drop = "drop_points" }
    ```

Rows that differ in nothing but what was measured (seeds) are averaged.
"""

import json
import re
import tomllib
from pathlib import Path
from statistics import fmean
from typing import Any

from docs.generate.markdown import plain, table

SAMPLES = Path(__file__).parents[2] / "samples"
FENCE = re.compile(r"^```figures\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PERCENT = ("top1", "top1_float", "agreement", "confident", "map", "map_float", "same_outputs")
FINE = ("bn_distance",)
TOLD = ("command", "date", "versions", "hardware", "rows")


def with_figures(text: str) -> str:
    """A page with its tables.

    Raises:
        ValueError: a page asks for rows or columns that its results file does not have.
    """
    return FENCE.sub(lambda found: _figures(tomllib.loads(found[1])), text)


def _figures(asked: dict[str, Any]) -> str:
    results = json.loads((SAMPLES / asked["file"]).read_text(encoding="utf-8"))
    columns: dict[str, str] = asked["columns"]
    rows = [row for row in results["rows"] if _wanted(row, asked.get("where", {}))]
    if not rows or any(all(key not in row for row in rows) for key in columns.values()):
        raise ValueError(
            f"samples/{asked['file']} holds no {' or no '.join(columns.values())} {asked.get('where', '')}"
        )
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells = [row.get(key) for key in columns.values()]
        groups.setdefault(tuple(str(cell) for cell in cells if not isinstance(cell, float)), []).append(row)
    repeated = any(len(found) > 1 for found in groups.values())
    lines = []
    for found in groups.values():
        cells = [_cell(key, [row.get(key) for row in found]) for key in columns.values()]
        lines.append([*cells, str(len(found))] if repeated else cells)
    head = [*columns, "runs"] if repeated else [*columns]
    told = [f"`{results['command']}`", results["date"], plain(results["hardware"])]
    told += [f"{plain(key)}: {value}" for key, value in results.items() if key not in TOLD and type(value) is int]
    return f"{table(list(map(plain, head)), lines)}\n\n*From `samples/{asked['file']}`: {', '.join(told)}.*"


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
