"""`--require sqnr=DB`: how good a file has to be."""

import math
from collections.abc import Mapping
from typing import Any

from onnxdfq.errors import InputError


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
        raise InputError(f"--require {text!r} is not sqnr=DB, such as sqnr=20.", field="require") from error
    return least


def unmet(least: float, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each file that is worse.

    Args:
        least: In dB.
        files: Target name → its metrics and "output", its path. What has no error at all is as good as can be.
    """
    sentences = []
    for metrics in files.values():
        found = metrics.get("sqnr_db_held_back", metrics.get("sqnr_db_images"))
        sentences += shortfall(least, str(metrics["output"]), found)
    return sentences


def shortfall(least: float, file: str, found: float | None) -> list[str]:
    """A sentence where a file is worse. found: its signal-to-noise ratio in dB, None where there is no noise."""
    if found is None or found >= least:
        return []
    return [f"--require sqnr={least:g} is not met by {file}: it has {found:.1f} dB."]
