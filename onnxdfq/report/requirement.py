"""`compress --require`: how good a file has to be, and what of it has to compute on integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from onnxdfq.errors import InputError
from onnxdfq.report.linting import shortfalls
from onnxdfq.shown import some

if TYPE_CHECKING:
    from onnxdfq.pipeline.result import Result

NAMED = 5  # nodes of a file


def read_requirement(text: str) -> float:
    """The least signal-to-noise ratio in dB that "sqnr=20" asks for.

    Raises:
        InputError: The text asks for something else.
    """
    key, _, number = text.partition("=")
    try:
        least = float(number)
        if key.strip() != "sqnr" or not math.isfinite(least):
            raise ValueError(text)
    except ValueError as error:
        raise InputError(
            f"--require {text!r} is not sqnr=DB, such as sqnr=20, nor integer, integer:Conv,Gemm or exact.",
            field="require",
        ) from error
    return least


def asks_for_integers(text: str | None) -> bool:
    """Whether a requirement is one of `lint`: of the nodes of a file, and not of how good it is."""
    return text is not None and text.partition(":")[0].strip() in ("integer", "exact")


def check_integers(text: str, keep_float: Sequence[str]) -> None:
    """Raises InputError, before any work, for a requirement that is none, or that `--keep-float` contradicts."""
    shortfalls((), text)
    verdict, _, listed = text.partition(":")
    operators = [name.strip() for name in listed.split(",") if name.strip()]
    for pattern in keep_float if verdict == "integer" else ():
        kind, _, glob = pattern.partition(":")
        if not operators or (kind == "type" and any(fnmatchcase(name, glob) for name in operators)):
            what = "every node" if not operators else f"{', '.join(operators)}"
            raise InputError(
                f"--keep-float {pattern} contradicts --require {text}, which asks {what} to compute on integers; leave "
                "one of the two out.",
                field="require",
            )


def unmet_integers(text: str, result: Result) -> list[str]:
    """A sentence for each file with nodes that do not meet it, exit code 1."""
    sentences = []
    for name, file in result.targets.items():
        if short := shortfalls(file.findings, text):
            nodes = [f"{finding.op_type or 'the file'} {finding.node}".strip() for finding in short]
            sentences.append(f"--require {text} is not met by {some(nodes, NAMED)} of the file for {name}.")
    return sentences


def unmet(least: float, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each file that is worse.

    Args:
        least: In dB.
        files: Target name → its metrics and "output", its path. What has no error at all is as good as can be.
    """
    from onnxdfq.pipeline.verdict import UNKNOWN  # not before it is needed: it takes torch with it

    sentences = []
    for metrics in files.values():
        if metrics.get("verdict") == UNKNOWN:
            sentences.append(
                f"--require sqnr={least:g} is not met by {metrics['output']}: there was nothing to compare."
            )
            continue
        found = metrics.get("sqnr_db_held_back", metrics.get("sqnr_db_images"))
        sentences += shortfall(least, str(metrics["output"]), found)
    return sentences


def shortfall(least: float, file: str, found: float | None) -> list[str]:
    """A sentence where a file is worse. found: its signal-to-noise ratio in dB, None where there is no noise, and
    minus infinity where the file computes what is no number."""
    if found is None or found >= least:
        return []
    if found == -math.inf:
        return [f"--require sqnr={least:g} is not met by {file}: it computes NaN or infinity."]
    return [f"--require sqnr={least:g} is not met by {file}: it has {found:.1f} dB."]
