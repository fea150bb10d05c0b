"""`RunReport`: all that is told about one run, as `report.json` has it; and that file read back."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec

from onnxdfq.errors import DataError
from onnxdfq.paths import reason_of
from onnxdfq.report.diagnosis.result import Diagnosis

FORMAT, VERSION = "onnxdfq report", 1
MOST_BYTES = 2**27  # of a report that is read

Number = float | int | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Mean and deviation of each channel of inputs, in the model's own units. of: what inputs these are."""

    of: str
    means: tuple[float, ...]
    deviations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LayerDistance:
    """How far the statistics in front of one BatchNormalization are from those that it remembers; 0 is perfect."""

    name: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class ImagesReport:
    """What numbers were decided by. pictures: of some of them, PNG files in base64. statistics: of all, and of the
    user's own where there are any. distances: by BatchNormalization, in graph order."""

    method: str
    count: int
    pictures: tuple[str, ...]
    statistics: tuple[Channels, ...]
    distances: tuple[LayerDistance, ...]


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """One quantized file. target: what it was written for. metrics: as `--json` has them. provenance: what the file
    itself says. diagnosis: None where the file is no QDQ."""

    target: str
    path: str
    bits: str
    bytes: int
    bytes_float: int | None
    verdict: str
    sqnr_db: float | None
    agreement: float | None
    metrics: dict[str, Number]
    provenance: dict[str, str]
    diagnosis: Diagnosis | None


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """command: the line that repeats the run. versions: of what it ran in."""

    format: str = FORMAT
    version: int = VERSION
    source: str
    command: str
    versions: dict[str, str]
    files: tuple[FileReport, ...]
    images: ImagesReport | None = None
    notes: tuple[str, ...] = field(default=())


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON has them; NaN and infinity become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def to_json(report: RunReport) -> str:
    """The report as `read_report` reads it."""
    return json.dumps(plain(report), allow_nan=False)


def read_report(path: Path) -> RunReport:
    """A report that was written before.

    Raises:
        DataError: The file is none, or of another version.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES:,} bytes, which no report of onnxdfq has.")
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason_of(error)}.") from error
    try:
        head = msgspec.json.decode(text, type=_Head)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(_NO_REPORT.format(path=path)) from error
    if head.format != FORMAT:
        raise DataError(_NO_REPORT.format(path=path))
    if head.version != VERSION:
        raise DataError(f"{path} is a report of version {head.version}, and version {VERSION} is read; make it again.")
    try:
        return msgspec.json.decode(text, type=RunReport)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path} is a damaged report: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class _Head:
    format: str = ""
    version: int = 0


_NO_REPORT = "{path} is no report of onnxdfq; compress --report FILE.html and diagnose -o FILE.json write one."
