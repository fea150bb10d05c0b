"""The files of a report."""

import json
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.model_file import check_writable
from onnxdfq.model_file.writing import staging
from onnxdfq.report.model_explorer import model_explorer
from onnxdfq.report.page.page import compared_page, page
from onnxdfq.report.run import RunReport, read_report, to_json

SUFFIXES = (".html", ".json")


def places(path: Path, targets: tuple[str, ...] = ("",)) -> tuple[Path, ...]:
    """What is written where a report is asked for under this name: `x.html` has `x.json` beside it, and for each target
    a graph for Model Explorer, `x.me.json`."""
    if path.suffix != ".html":
        return (path,)
    graphs = [path.with_suffix(f".{target}.me.json" if len(targets) > 1 else ".me.json") for target in targets]
    return (path, path.with_suffix(".json"), *graphs)


def check_report(path: Path, *, targets: tuple[str, ...] = ("",), force: bool) -> None:
    """Refuses a name before the work whose result goes there.

    Raises:
        InputError: It ends in neither .html nor .json.
        OutputError: A file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"A report is written as .html or as .json, and {path} is neither.", field="report")
    for place in places(path, targets):
        check_writable(place, force=force)


def write_report(path: Path, report: RunReport, models: Mapping[str, ir.Model], *, force: bool) -> tuple[Path, ...]:
    """The report, and beside an HTML file the same as JSON and as graphs; all or none. Gives back what was written.

    Args:
        path: Ends in .html or .json.
        report: To write.
        models: By target, the files that it tells of.
        force: Whether existing files may be replaced.

    Raises:
        OutputError: A file cannot be written.
    """
    wanted = places(path, tuple(models))
    texts = {path: page(report) if path.suffix == ".html" else to_json(report)}
    if path.suffix == ".html":
        texts[wanted[1]] = to_json(report)
        diagnoses = {file.target: file.diagnosis for file in report.files}
        for place, (target, model) in zip(wanted[2:], models.items(), strict=True):
            if (diagnosis := diagnoses.get(target)) is not None:
                texts[place] = json.dumps(model_explorer(model, diagnosis))
    _write(texts, force=force)
    return tuple(texts)


def write_page(path: Path, sources: tuple[Path, ...], *, force: bool) -> None:
    """Reports that were written as JSON as one HTML file: one as it is, two side by side.

    Raises:
        InputError: There are others than one or two.
        DataError: A file is no report.
        OutputError: The file cannot be written.
    """
    if not 1 <= len(sources) <= 2:
        raise InputError(f"One report is shown, or two are compared; {len(sources)} are given.")
    check_writable(path, force=force)
    reports = [read_report(source) for source in sources]
    _write({path: page(reports[0]) if len(reports) == 1 else compared_page(*reports)}, force=force)


def _write(texts: Mapping[Path, str], *, force: bool) -> None:
    with staging(force=force) as staged:
        for place, text in texts.items():
            with staged.file(place) as temporary:
                temporary.write_text(text, encoding="utf-8")
